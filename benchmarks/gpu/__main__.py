"""Measure one GPU in nine minutes: steps, images, products of mixed ranks, a step's time, memory.

Full-size SDXL with random weights; nothing is downloaded. Five parts, each with a time limit of its own: what
is out of time is skipped with a word, and a measurement that fails stops no other. The tables are printed,
and written beside the JSON file as Markdown.

Examples:
  python -m benchmarks.gpu                           all of it, into gpu.json and gpu.md
  python -m benchmarks.gpu --parts steps images      two parts alone
  python -m benchmarks.gpu --readme                  besides, put the tables into benchmarks/README.md
  python -m benchmarks.gpu --small                   try the script on a CPU, in two minutes
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import images, memory, products, profiled, training
from benchmarks.gpu.parts import Done, Part, run
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.training import numbers
from benchmarks.machine import machine, markdown

MAKERS: dict[str, tuple[Callable[..., Part], float]] = {  # each with its share of the time, and of the limit
    "steps": (training.part, 0.48),
    "products": (products.part, 0.05),
    "images": (images.part, 0.19),
    "profile": (profiled.part, 0.08),
    "memory": (memory.part, 0.12),
}
LIMIT, SMALL_LIMIT = 530.0, 110.0  # seconds, loading included
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- python -m benchmarks.gpu: begin -->", "<!-- end -->"


def main() -> None:
    """Measure, write and print."""
    given = _given()
    started = time.perf_counter()
    limit = SMALL_LIMIT if given.small else LIMIT

    def left() -> float:
        return limit - (time.perf_counter() - started)

    def say(line: str) -> None:
        print(f"[{limit - left():4.0f} s, {max(0, left()):4.0f} s left] {line}", file=sys.stderr, flush=True)

    if not given.small and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --small tries the script on a CPU")
    say("loading the model")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.load(Path(folder), small=given.small)
        say(f"{machine(setting.model.device)}: {setting.peak / 1e12:.4g} TFLOP/s in a matrix product")
        done = []
        for name in given.parts:
            make, share = MAKERS[name]
            done.append(run(make(setting, limit=share * limit), left=left, say=say))
    found = {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "machine": machine(setting.model.device),
        "peak": setting.peak,
        "seconds": time.perf_counter() - started,
        "goals": [{**goal, "met": None} if given.small else goal for goal in goals(done)],
        "parts": [part.as_json() for part in done],
    }
    tables = as_markdown(found, done)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    given.output.with_suffix(".md").write_text(tables, encoding="utf-8")
    if given.readme:
        write_readme(README, tables)
    print(tables)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=(__doc__ or "").partition("Examples:")[0],
        epilog="Examples:" + (__doc__ or "").partition("Examples:")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=MAKERS, default=list(MAKERS), metavar="PART")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="default: gpu.json")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--small", action="store_true", help="the embedded model, few measurements, no goals")
    return parser.parse_args()


def goals(done: Sequence[Done]) -> list[dict[str, Any]]:
    """What full-size SDXL is to reach at 1024 px, and what was measured; None: not known."""
    rows = {
        tuple(row.what.values()): numbers(row) for part in done for row in part.rows if row.values is not None
    }
    size = "1024 px"
    alone, plain = rows.get((size, "harness, alone"), {}), rows.get((size, "plain loop"), {})
    packs = [values for what, values in rows.items() if what[0] == size and "packed" in what[-1]]
    best: dict[str, float] = max(packs, key=lambda values: values["samples per s"], default={})
    pictures = [values["s per image"] for values in rows.values() if "s per image" in values]
    stock = next((v["s per image"] for what, v in rows.items() if what[0].startswith("stock")), None)
    rate, base_rate = best.get("samples per s"), plain.get("samples per s")
    wanted: list[tuple[str, float, float | None]] = [
        ("a step alone, s, at most", 0.2, alone.get("s per step")),
        ("packed, share of the peak, at least", 0.35, best.get("share of peak")),
        ("packed, times the plain loop, at least", 5.0, rate / base_rate if rate and base_rate else None),
        ("images, times the stock pipeline, at least", 4.0, stock / min(pictures) if stock else None),
    ]
    return [
        {
            "goal": goal,
            "wanted": number,
            "measured": measured,
            "met": None
            if measured is None
            else (measured <= number if goal.endswith("most") else measured >= number),
        }
        for goal, number, measured in wanted
    ]


def as_markdown(found: dict[str, Any], done: Sequence[Done]) -> str:
    """The machine, the goals, and a table for each part."""
    lines = [
        f"`{found['command']}` on {found['machine']}; {found['seconds']:.0f} s. A large matrix product does "
        f"{found['peak'] / 1e12:.4g} TFLOP/s.",
        "",
    ]
    lines += markdown(
        [
            {
                "goal": f"{goal['goal']} {goal['wanted']:g}",
                "measured": "–" if goal["measured"] is None else f"{goal['measured']:.3g}",
                "met": {None: "not measured", True: "yes", False: "**no**"}[goal["met"]],
            }
            for goal in found["goals"]
        ]
    )
    for part in done:
        lines += ["", f"#### {part.part.title}", ""]
        if part.failed is not None:
            lines.append(f"Failed: {part.failed.strip().splitlines()[-1]}")
        else:
            lines += markdown(_rows(part))
    return "\n".join(lines) + "\n"


def _rows(part: Done) -> list[dict[str, str]]:
    """Rows of equal columns; where there are no values, the first column of values says why."""
    whole = [None if row.values is None else part.part.columns(row, part.rows) for row in part.rows]
    columns = next((list(cells) for cells in whole if cells is not None), ["result"])
    return [
        row.what
        | (
            dict(zip(columns, [row.word or "", *[""] * len(columns)], strict=False))
            if cells is None
            else cells
        )
        for row, cells in zip(part.rows, whole, strict=True)
    ]


def write_readme(readme: Path, tables: str) -> None:
    """Put the tables between the marks that are there for them."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest and after, f"{readme} has no place for the tables"
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
