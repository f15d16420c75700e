"""What the command line prints: plans, verdicts, contrasts."""

import itertools
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config.loading.check_named_files import about_files
from harness.config.loading.check_sweep import without_effect
from harness.config.loading.files import visible
from harness.config.plan.cost import runs_of_one_length
from harness.config.plan.packing import planned_packs, why_alone
from harness.config.plan.plan import Plan, TrainingRun
from harness.config.plan.rungs import rung_steps
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.recipe import FolderRecipe
from harness.config.schema.search import FifoScheduler, OptunaSearch
from harness.engine.accounting.estimate import CONFIRMATION, Estimate, Share
from harness.engine.search import MOST_TRIED
from harness.engine.stages.context import Count
from harness.errors import ConfigError
from harness.results.format import count as counted
from harness.results.format import duration, events, interval, listed, metric_name, p_text, percent, signed
from harness.results.guidance import match_text

if TYPE_CHECKING:
    from harness.results import Results
    from harness.results.contrast import Contrast
    from harness.results.study import Study


class Letters(Console):
    """Prints every text letter for letter: no markup, no emoji codes, and control characters as escapes.

    On a terminal lines are wrapped between words. Elsewhere nothing is wrapped or cut, so that a path stands
    on one line of a log, and `awk` gets whole ids.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
        super().__init__(
            stderr=stderr,
            markup=False,
            emoji=False,
            highlight=False,
            width=None if is_terminal else LOG_WIDTH,
            soft_wrap=not is_terminal,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Of every text that is printed, in tables too."""
        return super().render_str(visible(text), **options)

    def item(self, text: str, *, mark: str = "· ") -> None:
        """An entry of a list: what wraps on a terminal stands under its first word."""
        written = Text(visible(text))
        room = max(self.width - cell_len(mark), 20)
        lines = written.wrap(self, room) if self.is_terminal else [written]
        for number, line in enumerate(lines):
            line.rstrip()
            self.print(Text(" " * cell_len(mark) if number else mark) + line, soft_wrap=True)


def styled(text: str, style: str) -> Text:
    """A text in a style, letter for letter."""
    return Text(visible(text), style=style)


MOST_TRIALS = 40  # that a terminal shows
LOG_WIDTH = 100_000
out = Letters()
err = Letters(stderr=True)


def print_plan(plan: Plan, workers: int) -> None:
    """The trials of a sweep, and what they share; the packs are those of so many workers."""
    sweep = plan.sweep
    out.print(styled(sweep.name, "bold"), f" {sweep.question}")
    table = Table("trial", "id", *sweep.axes, box=None, pad_edge=False)
    shown = plan.trials[:MOST_TRIALS] if out.is_terminal else plan.trials
    for one in shown:
        table.add_row(
            str(one.index),
            one.trial_id,
            *("–" if value is None else str(value) for value in one.params.values()),
        )
    out.print(table)
    if len(shown) < len(plan.trials):
        out.print(f"and {len(plan.trials) - len(shown)} more; in a pipe all are listed")
    if by_length := runs_of_one_length(plan):
        out.print(
            f"{len(by_length)} training runs share no steps with longer ones (trials "
            f"{_trials_of(plan, by_length)}): a {_kinds(by_length)} schedule depends on the length of the run"
        )
    out.print(
        f"{counted(len(plan.trials), 'trial')} · {counted(len(plan.runs), 'training run')} · "
        f"{counted(len(plan.datasets), 'dataset')}"
    )
    for what, are_controls in (("arms", False), ("controls", True)):
        names = [arm.name for arm in sweep.arms if arm.is_control == are_controls]
        out.item(", ".join(names), mark=f"{what:10}")
    for lines in (
        _sharing(plan),
        [_generated(plan)],
        _added(plan),
        _matched(plan),
        without_effect(sweep),
        _left_out(plan),
        about_files(plan),
        _packed(plan, workers) if len(plan.runs) > 1 else [],
    ):
        for line in lines:
            out.item(line)


def _added(plan: Plan) -> Iterator[str]:
    """What `controls` adds to the arms given by hand, and what must be made for it alone."""
    if plan.sweep.controls is None:
        return
    of_group: dict[bool, set[str]] = {True: set(), False: set()}
    for arm, one in itertools.product(plan.sweep.arms, plan.trials):
        if arm.match is None:
            of_group[arm.added].add(one.arms[arm.name])
    runs = {
        added: {a.run_id for arm_id in arm_ids for a in plan.arms[arm_id].adapters} - {None}
        for added, arm_ids in of_group.items()
    }
    alone = of_group[True] - of_group[False]
    cells = Counter(prompt.split for prompt in plan.sweep.prompts)
    names = [arm.name for arm in plan.sweep.arms if arm.added]
    images = len(alone) * cells["dev"] * len(plan.sweep.seeds)
    tested = len(names) * cells["test"] * len(plan.sweep.seeds)
    yield (
        f"controls: {plan.sweep.controls} adds {listed(names) or 'nothing'}: "
        f"{counted(len(runs[True] - runs[False]), 'training run')}, {counted(images, 'dev image')} and "
        f"{counted(tested, 'test image')} more"
    )


def _matched(plan: Plan) -> Iterator[str]:
    """What the searches for a guidance cost at most, or what they found."""
    dev = sum(prompt.split == "dev" for prompt in plan.sweep.prompts) * len(plan.sweep.seeds)
    for arm in plan.sweep.arms:
        if (match := arm.match) is not None:
            cost = "" if match.trial else f" once a trial is selected, at most {MOST_TRIED * dev} images"
            yield f"{arm.name}: {match_text(arm.model_dump())}{cost}"


def _trials_of(plan: Plan, runs: Sequence[TrainingRun]) -> str:
    ids = {run.run_id for run in runs}
    numbers = [str(trial.index) for trial in plan.trials if trial.run_id in ids]
    return ", ".join(numbers[:12]) + (", …" if len(numbers) > 12 else "")


def _kinds(runs: Sequence[TrainingRun]) -> str:
    return " or ".join(dict.fromkeys(run.training.schedule.kind for run in runs))


def _sharing(plan: Plan) -> Iterator[str]:
    """What is trained for how many trials; nothing while a search has suggested none."""
    own = len(plan.own_runs)
    if not plan.runs:
        if plan.trials:
            yield "nothing is trained: the trials' adapters are files"
        return
    trials = f"training runs: {own} for the trials"
    if own < len(plan.trials):
        trials += " (trials that differ in training.steps alone are checkpoints of one run)"
    others = len(plan.runs) - own
    yield trials + (f", {others} for adapters of control arms" if others else "")


def _packed(plan: Plan, workers: int) -> Iterator[str]:
    """Which runs go through the base together, and why others do not."""
    found = planned_packs(plan, workers=workers)
    together = [pack for pack in found if len(pack) > 1]
    for number, pack in enumerate(together):
        ranks = sorted({run.adapter.rank for run in pack if isinstance(run.adapter, LowRankAdapter)})
        yield (
            f"pack {number}: {len(pack)} training runs of rank {', '.join(map(str, ranks))} share each pass "
            "through the base model"
        )
    if together and plan.sweep.compute.pack == "auto":
        room = "one worker" if workers == 1 else f"{workers} workers"
        yield (
            f"these packs are for {room}, the room on this machine; the worker measures how many runs of a "
            "pack train fastest together and fit into memory"
        )
    reasons = Counter(why_alone(run, plan.sweep.compute) for run, *others in found if not others)
    for reason, count in reasons.items():
        yield f"{count} training {'run' if count == 1 else 'runs'} in no pack: {reason}"


def _left_out(plan: Plan) -> Iterator[str]:
    """What of users' folders is no training image."""
    recipes = [dataset.recipe for dataset in plan.datasets.values()]
    found = {recipe.path: recipe.left_out for recipe in recipes if isinstance(recipe, FolderRecipe)}
    yield from (f"{path}: {line}" for path, lines in found.items() for line in lines)


def _generated(plan: Plan) -> str:
    prompts = Counter(prompt.split for prompt in plan.sweep.prompts)
    seeds = len(plan.sweep.seeds)
    return (
        f"images of an arm: {prompts['dev']} dev and {prompts['test']} test prompts × "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    )


def print_search(plan: Plan) -> None:
    """How many points a search has asked for; nothing where all are known beforehand."""
    search = plan.sweep.search
    if isinstance(search, OptunaSearch):
        out.print(
            f"optuna suggests {search.trials} trials, {search.at_once} at a time; the {len(plan.trials)} "
            "suggested so far are counted below",
        )


def print_scheduler(plan: Plan, stopped: int) -> None:
    """When training runs may be stopped, and how many were; nothing where none can be."""
    scheduler = plan.sweep.scheduler
    if isinstance(scheduler, FifoScheduler) or not plan.trials:
        return
    steps = sorted({step for run_id in plan.own_runs for step in rung_steps(plan, run_id)})
    out.print(
        f"{scheduler.kind} may stop any of {len(plan.own_runs)} training runs after "
        f"{', '.join(map(str, steps))} steps; stopped so far: {stopped}. The counts below are without stops",
    )


def print_inventory(
    counts: Mapping[str, Count],
    encoded: Mapping[str, Count],
    confirmation: Count,
    estimated: Estimate | None = None,
) -> None:
    """What is asked for, what the store has, what is left to make, and how long that takes.

    Which images the confirmation takes is known once a trial is selected: all of them are missing before.
    """
    headings = ["asked", "in store", "to make", *(["time", "from timings"] if estimated else [])]
    table = Table("", *headings, box=None, pad_edge=False)
    for name, count in counts.items():
        table.add_row(name, *_cells(count), *(_time(estimated.shares[name]) if estimated else []))
    last = _time(estimated.shares[CONFIRMATION]) if estimated else []
    selected = (
        _cells(confirmation) if not confirmation.missing else [f"{confirmation.asked}", "", "once selected"]
    )
    table.add_row(CONFIRMATION, *selected, *last)
    for name, count in encoded.items():
        table.add_row(name, *_cells(count), *(["", "not timed"] if estimated else []))
    out.print(table)
    if estimated:
        passes = sum(count.passes for count in counts.values())
        out.print(_said(estimated, passes))


def _cells(count: Count) -> list[str]:
    return [f"{count.asked}", f"{count.asked - count.missing}", f"{count.missing}"]


def _time(share: Share) -> list[str]:
    """The time of one row, and what it is reckoned from. Where nothing is known, nothing is said."""
    if share.seconds is None:
        return ["–", "no past timings"]
    if not share.timings:
        return ["–", ""]
    some = "≥ " if share.untimed else ""
    how = ", scaled" if share.scaled else ""
    return [some + duration(share.seconds), f"{share.timings}{how}"]


def _said(estimated: Estimate, passes: float) -> str:
    if estimated.seconds is None:
        return (
            "How long it takes is not known: this workspace has no past timings of such work. To have some, "
            f"run one trial (harness trial SWEEP.yaml 0). In all it is {passes:,.0f} passes of a row through "
            "the UNet."
        )
    if estimated.complete and not estimated.seconds:
        return "Nothing is left to train or generate."
    some = "about" if estimated.complete else "at least"
    workers = f"{estimated.workers} {'worker' if estimated.workers == 1 else 'workers at once'}"
    why = "compute.max_concurrent" if estimated.workers_are_told else "this machine's room"
    hours = [f"{_hours(estimated.cpu_hours)} CPU-hours"]
    hours += [f"{_hours(estimated.gpu_hours)} GPU-hours" if estimated.gpu_hours else "no GPU"]
    text = f"{some} {duration(estimated.seconds)} on {workers} ({why}) · {' · '.join(hours)}"
    if not estimated.workers_are_told:
        text += ". For a cluster: --set compute.max_concurrent=N"
    return text + ". Loading models, encoding and scoring are not counted."


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def trial_number(text: str) -> int | Literal["best"]:
    """A trial as it is named on the command line. Raises ConfigError unless it is a number or best."""
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise ConfigError(f"trial {text!r} is not known; allowed: best, or a number (see harness check)")
    return int(text)


def print_verdict(
    results: "Results", folder: str, mirror: Sequence[str] = (), *, quiet: bool = False
) -> None:
    """The answer, as the report has it, the table of controls, and what to do next.

    `mirror`: commands and addresses for what a tracker has written. `quiet`: the headline alone.
    """
    from harness.results.headline import verdict
    from harness.results.study import Study

    study = Study(results)
    found = verdict(study)
    colour = {"better": "green", "worse": "red"}.get(found.tone, "yellow")
    out.print(styled(found.headline, f"bold {colour}"))
    if quiet:
        return
    for line in (*found.facts, *found.cautions, *events(results.sweep.get("events", []))):
        out.item(line)
    if found.contrasts:
        _print_table(found.contrasts, study, ["against"], lambda c: [c.control])
    for what, line in _next_steps(study, folder, mirror):
        out.print(f"{what:8}{line}", soft_wrap=True)  # whole, so that it can be copied


def verdict_as_json(results: "Results", folder: str, mirror: Sequence[str], failed: Mapping[str, str]) -> str:
    """The verdict as one JSON object; `failed` maps the name of a task to its reason."""
    from harness.results.headline import verdict
    from harness.results.study import Study

    study = Study(results)
    about = {"sweep": results.sweep["name"], "selected": study.selected, **asdict(verdict(study))}
    about["next"] = [{"what": what, "how": line} for what, line in _next_steps(study, folder, mirror)]
    return json.dumps({**about, "failed": dict(failed)}, ensure_ascii=False)


def _next_steps(study: "Study", folder: str, mirror: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What there is to look at and to do, each with its path or command."""
    from harness.store.workspace import REPORT

    where = shlex.quote(folder)
    yield "page", f"{folder}/{REPORT}  (harness open {where})"
    yield "tables", f"r = harness.results.load({folder!r})"
    if study.selected is not None and study.sweep["training"] is not None:
        yield "LoRA", f"harness export {where} best"
    for line in mirror or [f"harness publish {where}"]:
        yield "W&B", line


def print_next_steps(lines: Sequence[str]) -> None:
    """Commands and addresses for what a tracker has written, whole, so that they can be copied."""
    for line in lines:
        out.print(f"{'W&B':8}{line}", soft_wrap=True)


def print_contrasts(results: "Results", trial_id: str, split: str) -> None:
    """One trial against each control on each metric."""
    from harness.results.study import Study

    study = Study(results)
    chosen = [c for c in study.contrasts.values() if (c.trial_id, c.split) == (trial_id, split)]
    _print_table(
        chosen, study, ["metric", "arm", "against"], lambda c: [metric_name(c.metric), c.arm, c.control]
    )


def _print_table(
    contrasts: Sequence["Contrast"],
    study: "Study",
    names: list[str],
    named: Callable[["Contrast"], list[str]],
) -> None:
    """A row per contrast, then each thing that its numbers do not say, once.

    On a narrow terminal the least needed columns are left out; no number is cut.
    """
    headings = [*names, "diff", "interval", "p", "wins", "pairs", "verdict"]
    rows = []
    for c in contrasts:
        decimals = study.decimals[c.metric]
        limits, wins = interval(c.low, c.high, decimals), percent(c.win_rate)
        numbers = [signed(c.difference, decimals), limits, p_text(c.p), wins, str(c.n_pairs), c.finding]
        rows.append([*named(c), *numbers])
    widths = [max(cell_len(visible(text)) for text in column) for column in zip(headings, *rows, strict=True)]
    left_out = set[str]()
    for heading in ("pairs", "wins", "p"):
        kept = [w + 2 for w, name in zip(widths, headings, strict=True) if name not in left_out]
        if sum(kept) - 2 > out.width:
            left_out.add(heading)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        if heading not in left_out:
            table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(text for text, name in zip(row, headings, strict=True) if name not in left_out))
    out.print(table)
    for note in dict.fromkeys(f"{c.control}: {c.note}" for c in contrasts if c.note):
        out.print(f"– {note}")
