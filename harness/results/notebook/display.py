"""How a sweep shows itself: the verdict, the selected trial against its controls, the best trials, counts."""

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.config.loading.files import visible
from harness.results.contrast import Contrast, known
from harness.results.format import MISSING, count, interval, listed, metric_name, p_text, percent, signed
from harness.results.headline import verdict
from harness.results.study import Study

if TYPE_CHECKING:
    from harness.results.sweep_results import Results

MOST_CONTROLS = 12  # rows; more are counted
MOST_TRIALS = 10
MOST_LINES = 10  # of the plain text
FRAMES = "trials, arms, images, scores, summary, losses; pairs(), wide(), columns(NAME)"


def as_text(results: "Results") -> str:
    """At most ten lines."""
    study = Study(results)
    found = verdict(study)
    lines = [f"{results.sweep['name']}: {_counts(study)}", found.headline]
    rows = [f"  {c.arm} − {c.control}  {'  '.join(_numbers(study, c))}  {c.finding}" for c in found.contrasts]
    room = MOST_LINES - len(lines) - 1
    shown = rows if len(rows) <= room else [*rows[: room - 1], f"  and {len(rows) - room + 1} more controls"]
    return "\n".join([*lines, *shown, f"frames: {FRAMES}"])


def as_html(results: "Results") -> str:
    """For a notebook: at most 25 rows, names instead of ids."""
    study = Study(results)
    found = verdict(study)
    confidence = f"{100 * results.sweep['analysis']['confidence']:g} % interval"
    where = "held-out test prompts" if study.split == "test" else "dev prompts"
    # what it is called, its contrast, as guidance, finding, what it is
    shown: list[tuple[str, Contrast, str, str, str]] = [
        (c.control, c, study.as_guidance(c), c.finding, study.about(c.control)) for c in found.contrasts
    ]
    for name, c, seen in study.known_damage if shown else ():
        tried = "found" if seen else "not found"
        shown.append((f"{c.arm} − {c.control}", c, MISSING, tried, study.about(name)))
    controls = [
        [name, *_numbers(study, c), units, percent(c.win_rate), str(c.n_prompts), finding, about]
        for name, c, units, finding, about in shown
    ]
    left_out = max(0, len(controls) - MOST_CONTROLS)
    parts = [
        f"<h3>{escape(found.headline)}</h3>",
        f"<p><b>{escape(results.sweep['name'])}</b>: {escape(results.sweep['question'])}<br>"
        f"{escape(_counts(study))}</p>",
        _table(
            f"{study.arm} of the selected trial against each control: {metric_name(study.primary)} on the "
            f"{where}" + (f"; {count(left_out, 'more control')} in r.summary" if left_out else ""),
            [
                "control",
                "difference",
                confidence,
                "p",
                "as guidance",
                "wins",
                "prompts",
                "finding",
                "what it is",
            ],
            controls[:MOST_CONTROLS],
        ),
        _table(
            f"trials, {study.arm} against {study.control} on the dev prompts, best first"
            + (f": {MOST_TRIALS} of {study.n_trials()}" if study.n_trials() > MOST_TRIALS else ""),
            ["trial", "difference", confidence, "p", "status"],
            list(_trials(study))[:MOST_TRIALS],
        ),
        f"<p>{escape(FRAMES)}</p>",
    ]
    return "".join(parts)


def escape(text: str) -> str:
    """HTML in which every letter is itself, and control characters are to be seen."""
    return html.escape(visible(text))


def _numbers(study: Study, c: Contrast) -> list[str]:
    decimals = study.decimals[c.metric]
    return [signed(c.difference, decimals), interval(c.low, c.high, decimals), p_text(c.p)]


def _trials(study: Study) -> Iterator[list[str]]:
    """Best first; a trial without a difference comes last, with its status."""
    rows = []
    for trial in study.results.trials.to_dict("records"):
        c = study.contrast(trial["trial_id"], control=study.control, split="dev")
        label = study.labels[trial["trial_id"]] + (" (selected)" if known(trial["selected"]) else "")
        numbers = ["—", "—", "—"] if c is None else _numbers(study, c)
        gain = None if c is None else c.gain
        rows.append((-float("inf") if gain is None else gain, [label, *numbers, trial["status"]]))
    yield from (row for _, row in sorted(rows, key=lambda pair: -pair[0]))


def _counts(study: Study) -> str:
    results = study.results
    status = results.trials["status"].value_counts()
    others = listed([f"{number} {name}" for name, number in status.items() if name != "completed"])
    trials = count(study.n_trials(), "trial") + (f" ({others})" if others else "")
    arms = f"{len(study.adapter_arms)} + {len(study.controls)} arms (own + control)"
    images, scores = count(len(results.images), "image"), count(len(results.scores), "score")
    return f"{trials}, {arms}, {images}, {scores}"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption style='text-align:left'>{escape(caption)}</caption>"
    return f"<table>{caption}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
