"""Part 1: steps of the harness's own loop against the plain one, alone and in packs."""

from collections.abc import Sequence
from functools import partial

from benchmarks.gpu.parts import Measurement, Part, Row, Values
from benchmarks.gpu.setting import Setting, Steps, packed_steps, plain_steps

PACKS = (1, 2, 4, 8, 16)
GIB = 2**30
SLOW = "compiling takes half a minute; not with --small"


def part(setting: Setting, *, limit: float) -> Part:
    """Batch 1 throughout. The plain loop comes first: the others are compared with it."""
    return Part(
        name="steps",
        title="Training steps",
        limit=limit,
        measurements=lambda: [
            measurement
            for resolution in setting.resolutions
            for measurement in _measurements(setting, resolution)
        ],
        columns=_columns,
    )


def _measurements(setting: Setting, resolution: int) -> list[Measurement]:
    def plain() -> Values:
        return _values(setting, resolution, plain_steps(setting, resolution), rows=1)

    def packed(together: int, *, checkpointing: bool = False, compiled: bool = False) -> Values:
        steps = packed_steps(
            setting, resolution, together=together, checkpointing=checkpointing, compiled=compiled
        )
        return _values(setting, resolution, steps, rows=together)

    def row(way: str, measure: partial[Values], *, leave_out: str | None = None) -> Measurement:
        what = {"images": f"{resolution} px", "way": way}
        return Measurement(what=what, measure=measure, leave_out=leave_out)

    packs = PACKS[:2] if setting.small else PACKS
    names = {size: "harness, alone" if size == 1 else f"harness, {size} packed" for size in packs}
    ends = (packs[0], packs[-1])
    slow = SLOW if setting.small else None
    return [
        row("plain loop", partial(plain)),
        *(row(names[size], partial(packed, size)) for size in packs),
        *(row(f"{names[size]}, checkpointing", partial(packed, size, checkpointing=True)) for size in ends),
        *(
            row(f"{names[size]}, compiled", partial(packed, size, compiled=True), leave_out=slow)
            for size in (1, min(8, packs[-1]))
        ),
    ]


def _values(setting: Setting, resolution: int, steps: Steps, *, rows: int) -> Values:
    per_second = rows / steps.seconds
    return {
        "s per step": steps.seconds,
        "samples per s": per_second,
        "share of peak": per_second * setting.operations(resolution) / setting.peak,
        "peak bytes": steps.peak,
    }


def _columns(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    values = numbers(row)
    plain = next((r for r in rows if r.what["images"] == row.what["images"] and r.values is not None), row)
    against = "–"
    if plain.what["way"] == "plain loop":
        against = f"{values['samples per s'] / numbers(plain)['samples per s']:.2f}"
    return {
        "s per step": f"{values['s per step']:.4g}",
        "samples per s": f"{values['samples per s']:.4g}",
        "times the plain loop": against,
        "share of peak": f"{100 * values['share of peak']:.1f} %",
        "GiB at most": gib(row),
    }


def numbers(row: Row) -> dict[str, float]:
    """The values that are numbers."""
    return {name: float(v) for name, v in (row.values or {}).items() if isinstance(v, int | float)}


def gib(row: Row, name: str = "peak bytes") -> str:
    """A number of bytes as the tables have it."""
    found = numbers(row)
    return f"{found[name] / GIB:.2f}" if name in found else "not counted"
