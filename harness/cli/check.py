"""What `harness check` prints: the plan of a sweep, its inventory and its cost."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from harness.cli.console import out, styled
from harness.config.loading.check_named_files import about_files
from harness.config.loading.check_sweep import without_effect
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
from harness.results.format import count as counted
from harness.results.format import duration, listed
from harness.results.guidance import match_text

MOST_TRIALS = 40  # that a terminal shows


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
