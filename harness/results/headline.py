"""What the sweep shows, in plain words. Every sentence follows from the tables by a stated rule."""

from dataclasses import dataclass
from typing import Literal

from harness.results.contrast import Contrast
from harness.results.format import (
    count,
    interval,
    listed,
    metric_name,
    p_clause,
    percent,
    plain,
    signed,
)
from harness.results.study import Study

Tone = Literal["better", "worse", "none", "missing"]
HELD_OUT = "held\u2011out"  # a headline must not break at the hyphen
TONES: dict[str, Tone] = {
    "better": "better",
    "higher": "better",
    "worse": "worse",
    "lower": "worse",
    "none": "none",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer, what it rests on, and what speaks against reading more into it."""

    tone: Tone
    headline: str
    facts: tuple[str, ...]
    cautions: tuple[str, ...]
    contrasts: tuple[Contrast, ...]  # the selected trial against each control, on the split of the verdict


def verdict(study: Study) -> Verdict:
    """The verdict of a study; a study without a usable trial has one too."""
    contrasts = tuple(study.against(split=study.split))
    main = next((c for c in contrasts if c.control == study.control), None)
    if study.selected is None or main is None or main.difference is None:
        return Verdict(
            tone="missing",
            headline=_no_verdict(study, main),
            facts=(),
            cautions=tuple(_losses(study)),
            contrasts=contrasts,
        )
    return Verdict(
        tone=TONES[main.finding],
        headline=_headline(study, main, contrasts),
        facts=tuple(_facts(study, main)),
        cautions=tuple(_cautions(study, main, contrasts)),
        contrasts=contrasts,
    )


def _no_verdict(study: Study, main: Contrast | None) -> str:
    if study.n_trials("completed") == 0:
        return f"No verdict: none of {count(study.n_trials(), 'trial')} was completed."
    reason = f" ({main.reason})" if main is not None and main.reason else ""
    metric = metric_name(study.primary)
    return f"No verdict: no trial could be compared with {study.control} on {metric}{reason}."


def _headline(study: Study, main: Contrast, contrasts: tuple[Contrast, ...]) -> str:
    exploratory = "" if study.split == "test" else "Exploratory: "
    where = f"on {HELD_OUT} prompts" if study.split == "test" else "on the prompts it was selected on"
    metric = metric_name(study.primary)
    others = [c.control for c in contrasts if c.control != main.control and c.finding != main.finding]
    match main.finding:
        case "none":
            return f"{exploratory}No difference from {main.control} shown {where}, by {metric}."
        case "better" | "higher":
            word = "Better" if main.finding == "better" else f"Higher {metric}"
        case _:
            word = "Worse" if main.finding == "worse" else f"Lower {metric}"
    by = f", by {metric}" if main.finding in ("better", "worse") else ""
    if others and main.finding in ("better", "higher"):
        but = f"but not shown to beat {listed(others, 'or')}"
        return f"{exploratory}{word} than {main.control}, {but}, {where}{by}."
    beaten = [c.control for c in contrasts if c.finding == main.finding]
    whom = "every control" if len(beaten) == len(contrasts) > 1 else listed(beaten)
    return f"{exploratory}{word} than {whom} {where}{by}."


def _facts(study: Study, main: Contrast) -> list[str]:
    """What was selected and how; what it measured; what is left of the dev difference."""
    decimals = study.decimals[study.primary]
    metric = metric_name(study.primary)
    label = study.labels[main.trial_id]
    usable = sum(
        1
        for trial_id in study.labels
        if (c := study.contrast(trial_id, control=study.control, split="dev")) and c.difference is not None
    )
    dev = study.contrast(main.trial_id, control=study.control, split="dev")
    facts = []
    if usable > 1:
        n_dev = count(dev.n_prompts, "dev prompt") if dev else "the dev prompts"
        n_arms = len(study.adapter_arms)
        drawn = f", drawn as {study.arm}" if n_arms > 1 else ""
        among = count(usable, "usable trial") + f" in {n_arms} arms" * (n_arms > 1)
        facts.append(
            f"Selected: {label}{drawn}. Of {among} it had the largest gain in {metric} over "
            f"{study.control} on {n_dev}."
        )
    else:
        facts.append(_only_one(study, label))
    if study.pareto_front:
        labels = [study.labels[trial_id] for trial_id in study.pareto_front]
        facts.append(f"On the Pareto front of the search's objectives, on dev prompts: {listed(labels)}.")
    facts.append(_measured(main, decimals))
    if study.split == "test" and dev is not None and dev.difference is not None:
        facts.append(_shrinkage(dev, main, decimals, selected=usable * len(study.adapter_arms) > 1))
    return facts


def _only_one(study: Study, label: str) -> str:
    n_arms = len(study.adapter_arms)
    if n_arms > 1:
        return f"The trial: {label}, the only usable one; of its {n_arms} arms, {study.arm} was best on dev."
    return f"The trial: {label}. It was the only usable one, so nothing was selected."


def _measured(main: Contrast, decimals: int) -> str:
    wins = f", {main.arm} ahead in {percent(main.win_rate)} of the pairs" if main.win_rate is not None else ""
    where = "held-out test" if main.split == "test" else "dev"
    means = f"{plain(main.mean_arm, decimals)} against {plain(main.mean_control, decimals)}"
    confidence = f"{100 * main.confidence:g}\u202f% interval"
    certainty = f"{confidence} {interval(main.low, main.high, decimals)}, {p_clause(main.p)}"
    if main.low is None and main.reason:
        certainty = main.reason
    return (
        f"{main.arm} − {main.control} = {signed(main.difference, decimals)}, {certainty}, "
        f"on {count(main.n_prompts, f'{where} prompt')} ({count(main.n_pairs, 'pair')} of images with "
        f"the same prompt and seed){wins}. Means: {means}."
    )


def _shrinkage(dev: Contrast, test: Contrast, decimals: int, *, selected: bool) -> str:
    assert dev.difference is not None and test.difference is not None
    text = f"From dev to test the difference went from {signed(dev.difference, decimals)} to "
    text += signed(test.difference, decimals)
    if dev.difference * test.difference > 0 and abs(test.difference) < abs(dev.difference):
        text += f" ({percent(test.difference / dev.difference)} of it is left)"
    elif dev.difference * test.difference < 0:
        text += " (the sign changed)"
    if selected and abs(test.difference) < abs(dev.difference):
        text += ". Some loss is expected: the best of several trials looks better than it is"
    return text + ". The test figure is the one to quote."


def _cautions(study: Study, main: Contrast, contrasts: tuple[Contrast, ...]) -> list[str]:
    return [
        *_exploratory(study),
        *_explanations(study, main, contrasts),
        *_guards(study),
        *_power(main),
        *_losses(study),
    ]


def _exploratory(study: Study) -> list[str]:
    if study.split == "test":
        return []
    why = (
        "the test images of the selected trial are missing"
        if study.has_test_prompts
        else "the sweep has no test prompts"
    )
    return [
        f"This result is exploratory: {why}, so the trial is judged on the very prompts it was chosen on, "
        "which flatters it. p is adjusted for the number of trials and arms, the difference is not."
    ]


EXPLAINS = {
    "sham": "an adapter trained in the same way on other images ({control}) does the same, so the gain "
    "cannot be put down to the bad images",
    "others": "the other adapters without the trial's own ({control}) do the same, so the gain cannot be put "
    "down to the trial's own",
    "alone": "the trial's own adapter by itself ({control}) does the same, so the gain cannot be put down to "
    "the adapters together",
    "guidance": "another guidance alone ({control}) does the same, so the gain cannot be put down to "
    "the adapter",
    "word": "the negative prompt alone ({control}) does the same, so the gain cannot be put down to "
    "the adapter",
    "plain": "drawing without any of this ({control}) does the same",
}


def _explanations(study: Study, main: Contrast, contrasts: tuple[Contrast, ...]) -> list[str]:
    """For each control that was not beaten, what therefore remains possible."""
    if not any(c.finding in ("better", "higher") for c in contrasts):
        return []
    decimals = study.decimals[study.primary]
    found = []
    for c in contrasts:
        if c.finding in ("better", "higher"):
            continue
        if c.difference is None:
            found.append(f"No comparison with {c.control}: {c.reason or 'no numbers'}.")
            continue
        text = f"It is not shown to beat {c.control} ({signed(c.difference, decimals)} "
        text += f"{interval(c.low, c.high, decimals)}, {p_clause(c.p)}): it remains possible that "
        text += EXPLAINS[study.control_kind(c.control)].format(control=c.control) + "."
        own = _own_gain(c, main)
        if c.control != main.control and own is not None:
            text += f" By itself, {c.control} differs from {main.control} by {signed(own, decimals)}, "
            text += f"the adapter by {signed(main.difference, decimals)}."
        found.append(text)
    return found


def _own_gain(control: Contrast, main: Contrast) -> float | None:
    """Control − main control, where both were measured on the same pairs."""
    if control.mean_control is None or main.mean_control is None or control.n_pairs != main.n_pairs:
        return None
    return control.mean_control - main.mean_control


def _guards(study: Study) -> list[str]:
    """Other metrics that moved: a guard, or a metric that became worse."""
    moved, worse = [], []
    for metric in study.metrics:
        c = study.contrast(study.selected, control=study.control, metric=metric, split=study.split)
        if metric == study.primary or c is None or c.difference is None:
            continue
        text = f"{metric_name(metric)} {signed(c.difference, study.decimals[metric])} "
        text += interval(c.low, c.high, study.decimals[metric])
        if c.finding in ("higher", "lower"):
            moved.append(text)
        elif c.finding == "worse":
            worse.append(text)
    found = []
    if moved:
        found.append(
            f"Against {study.control} the images also changed in {listed(moved)}. A scorer may reward that "
            "alone; look at the images."
        )
    if worse:
        found.append(f"It costs something: against {study.control}, {listed(worse)} became worse.")
    return found


def _power(main: Contrast) -> list[str]:
    """Too few prompts for the test to say anything at all."""
    smallest = 2.0 ** (1 - main.n_prompts)  # two-sided sign flips of n prompt means
    if smallest < 1 - main.confidence:
        return []
    return [
        f"With {count(main.n_prompts, 'prompt')} the sign-flip test cannot give a p below {smallest:.2g}, "
        "so no difference could be shown whatever its size. Use more prompts."
    ]


def _losses(study: Study) -> list[str]:
    found = []
    failed, missing, stopped = (study.n_trials(status) for status in ("failed", "missing", "stopped"))
    if failed or missing or stopped:
        parts = [f"{stopped} stopped early by {study.scheduler}"] * bool(stopped)
        parts += [f"{failed} failed"] * bool(failed) + [f"{missing} did not run"] * bool(missing)
        found.append(f"Of {count(study.n_trials(), 'trial')}, {listed(parts)}; they were not in the running.")
    scores = study.results.scores
    lost = int(scores["value"].isna().sum())
    if lost:
        found.append(
            f"{lost:,} of {count(len(scores), 'score')} could not be computed; their pairs are left out."
        )
    return found
