"""What the sweep shows, in plain words. Every sentence follows from the tables by a stated rule."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.results.claim import Tone, claim, tone
from harness.results.contrast import BAD, GOOD, Contrast
from harness.results.format import (
    count,
    interval,
    listed,
    metric_name,
    p_clause,
    p_text,
    percent,
    plain,
    signed,
)
from harness.results.inference import MANY_PROMPTS, SKEWED
from harness.results.judges import second_opinions
from harness.results.likeness import EVERY_NEEDS, EXPLAINS, NEEDED
from harness.results.study import Study
from harness.results.verdicts import spent_p

HELD_OUT = "held\u2011out"  # a headline must not break at the hyphen


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer, what it rests on, and what speaks against reading more into it."""

    tone: Tone
    headline: str
    facts: tuple[str, ...]
    cautions: tuple[str, ...]  # one of a kind, the gravest first
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
        tone=tone(main, contrasts, unmet=bool(study.unmet(main, contrasts))),
        headline=_headline(study, main, contrasts),
        facts=tuple(_facts(study, main, contrasts)),
        cautions=tuple(_cautions(study, main, contrasts)),
        contrasts=contrasts,
    )


def _no_verdict(study: Study, main: Contrast | None) -> str:
    if study.n_trials("completed") == 0:
        return f"No verdict: none of {count(study.n_trials(), 'trial')} was completed."
    reason = f" ({main.reason})" if main is not None and main.reason else ""
    metric = metric_name(study.primary)
    return f"No verdict: no trial could be compared with {study.control} on {metric}{reason}."


def _headline(study: Study, main: Contrast, contrasts: Sequence[Contrast]) -> str:
    where = f"on {HELD_OUT} prompts" if study.split == "test" else "on the prompts it was selected on"
    found = claim(study, main, contrasts)
    if not study.confirmatory:
        look = "" if study.split == "dev" else f" (look {len(study.looks)} at these test prompts)"
        found = f"exploratory{look}: {found}"
    return f"{found[0].upper()}{found[1:]}, {where}, by {metric_name(study.primary)}."


def _facts(study: Study, main: Contrast, contrasts: Sequence[Contrast]) -> Iterator[str]:
    """What was selected and how; what it measured, also as guidance; what the design finds; what is left."""
    decimals = study.decimals[study.primary]
    label = study.labels[main.trial_id]
    usable = sum(
        1
        for trial_id in study.labels
        if (c := study.contrast(trial_id, control=study.control, split="dev")) and c.difference is not None
    )
    dev = study.contrast(main.trial_id, control=study.control, split="dev")
    yield _selected(study, label, dev, usable)
    if study.pareto_front:
        labels = [study.labels[trial_id] for trial_id in study.pareto_front]
        yield f"On the Pareto front of the search's objectives, on dev prompts: {listed(labels)}."
    yield _measured(main, decimals)
    if main.detectable is not None or main.prompts_to_decide is not None:
        yield _design(main, decimals)
    yield _in_guidance(study, main, contrasts)
    if study.split == "test" and dev is not None and dev.difference is not None:
        yield _shrinkage(dev, main, decimals, selected=usable * len(study.adapter_arms) > 1)
    yield second_opinions(study, main)
    for name, c, found in study.known_damage:
        if found:
            yield f"The metric finds a known damage, {_damaged(study, name, c)}."


def _damaged(study: Study, name: str, c: Contrast) -> str:
    """As `blurred (blur 0.2): blurred − baseline = −0.59 [−0.70, −0.48]`."""
    decimals = study.decimals[study.primary]
    damage = "{degrade} {severity:g}".format(**study.arm_config(name)["post"])
    size = f"{signed(c.difference, decimals)} {_limits(c, decimals)}"
    return f"{name} ({damage}): {c.arm} − {c.control} = {size}"


def _selected(study: Study, label: str, dev: Contrast | None, usable: int) -> str:
    n_arms = len(study.adapter_arms)
    if usable > 1:
        n_dev = count(dev.n_prompts, "dev prompt") if dev else "the dev prompts"
        which = f", arm {study.arm}" if n_arms > 1 else ""
        among = count(usable, "usable trial") + f" in {n_arms} arms" * (n_arms > 1)
        return (
            f"Selected: {label}{which}. Of {among} it had the best difference in "
            f"{metric_name(study.primary)} from {study.control} on {n_dev}."
        )
    if n_arms > 1:
        return f"The trial: {label}, the only usable one; of its {n_arms} arms, {study.arm} was best on dev."
    return f"The trial: {label}. It was the only usable one, so nothing was selected."


def _measured(main: Contrast, decimals: int) -> str:
    wins = f", {main.arm} ahead in {percent(main.win_rate)} of the pairs" if main.win_rate is not None else ""
    where = "held-out test" if main.split == "test" else "dev"
    means = f"{plain(main.mean_arm, decimals)} against {plain(main.mean_control, decimals)}"
    certainty = f"{100 * main.confidence:g}\u202f% interval {interval(main.low, main.high, decimals)}, "
    certainty += p_clause(main.p) + (f" among {main.family} comparisons" if main.family > 1 else "")
    if main.low is None and main.reason:
        certainty = main.reason
    lost = f", {count(main.n_missing, 'pair')} lost" if main.n_missing else ""
    return (
        f"{main.arm} − {main.control} = {signed(main.difference, decimals)}, {certainty}, "
        f"on {count(main.n_prompts, f'{where} prompt')} ({count(main.n_pairs, 'pair')} of images with "
        f"the same prompt and seed{lost}){wins}. Means: {means}."
    )


def _design(main: Contrast, decimals: int) -> str:
    """What these prompts could have found, and how many would decide what is open."""
    said = []
    if main.detectable is not None:
        said.append(
            f"{count(main.n_prompts, 'prompt')} find a true difference of {plain(main.detectable, decimals)} "
            f"in 80\u202f% of studies; less is likely missed"
        )
    if main.finding == "undecided":
        aim = (
            f"a difference of the size observed, {signed(main.difference, decimals)}, were it the true one"
            if main.margin is None
            else f"between no difference and one of ±{plain(main.margin, decimals)}"
        )
        decide = "would show" if main.margin is None else "would decide"
        how_many = (
            "No number of prompts up to 100,000"
            if main.prompts_to_decide is None
            else f"About {count(main.prompts_to_decide, 'prompt')}"
        )
        said.append(f"{how_many} {decide} {aim}")
    return ". ".join(said) + "."


def _in_guidance(study: Study, main: Contrast, contrasts: Sequence[Contrast]) -> str:
    """The differences as changes of guidance, from controls at other guidances; or why that is not known."""
    said = []
    for c in [main, *(other for other in contrasts if other is not main)]:
        found, own, reason = study.in_guidance_units(c)
        if found is not None:
            size = signed(c.difference, study.decimals[c.metric])
            said.append(f"{size} against {c.control} is what guidance {own:g} to {found:.2f} makes of it")
        elif c is main:
            said.append(f"not known against {c.control}, because {reason}")
    return f"In guidance units: {'; '.join(said)}."


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
    """At most one of each kind, the gravest first."""
    others = [c for c in contrasts if c is not main]
    return [
        *_lacking(study, main, contrasts),
        *_exploratory(study, main),
        *_blind(study),
        *_beaten(study, others),
        *_not_beaten(study, main, others),
        *_not_every(study, main, contrasts),
        *_other_metrics(study),
        *_numbers(main),
        *_losses(study),
    ]


def _lacking(study: Study, main: Contrast, contrasts: Sequence[Contrast]) -> list[str]:
    absent = [NEEDED[need] for need, names in study.unmet(main, contrasts).items() if not names]
    if not absent:
        return []
    return [
        f"A gain is one over a control that this sweep lacks: {listed(absent)}. `controls: minimal` adds it."
    ]


def _not_every(study: Study, main: Contrast, contrasts: Sequence[Contrast]) -> list[str]:
    absent = [NEEDED[need] for need in EVERY_NEEDS if not study.serving(need, main.arm)]
    if not absent or any(c.finding not in GOOD for c in contrasts):
        return []
    return [f"“Better than every control” is not said: the sweep has no {listed(absent)}."]


def _exploratory(study: Study, main: Contrast) -> list[str]:
    if study.confirmatory:
        return []
    if study.split == "test":
        k = len(study.looks)
        damaged = [look["damaged"] for look in study.looks if "damaged" in look]
        first, *later = (look for look in study.looks if "damaged" not in look)
        spent = "" if main.p is None else f", over {k} looks p is {p_text(spent_p(main.p, k))}"
        unread = (
            f"{listed(damaged)} among the sweeps cannot be read and may have been a look at these prompts"
        )
        if not later:
            return [
                f"This result is exploratory{spent}: {unread}. Restore it from a copy, or delete it if it is "
                "known to be a look at other prompts."
            ]
        asked = f"{metric_name(first['primary'])}, {first['arm']} against {first['control']}"
        return [
            *([f"{unread}."] if damaged else []),
            f"This result is exploratory{spent}: these test prompts were looked at before, first on "
            f"{first['time'][:10]} by sweep {first['sweep']} ({asked}): “{first['headline']}” What was "
            "looked at first is confirmatory; fresh test prompts give another such verdict.",
        ]
    why = (
        "the test images of the selected trial are missing"
        if study.has_test_prompts
        else "the sweep has no test prompts"
    )
    return [
        f"This result is exploratory: {why}, so the trial is judged on the very prompts it was chosen on, "
        "which flatters it. p is adjusted for the number of trials and arms, the difference is not."
    ]


def _blind(study: Study) -> list[str]:
    """Known damage that is not found."""
    lost = [_damaged(study, name, c) for name, c, found in study.known_damage if not found]
    if not lost:
        return []
    return [
        f"The metric does not find a known damage, {listed(lost)}: a difference of this size may be missed."
    ]


def _beaten(study: Study, others: Sequence[Contrast]) -> list[str]:
    """Controls that are better than the arm."""
    worse = [c for c in others if c.finding in BAD]
    if not worse:
        return []
    decimals = study.decimals[study.primary]
    shown = [f"{c.control} ({signed(c.difference, decimals)} {_limits(c, decimals)})" for c in worse]
    what = "is better than" if worse[0].finding == "worse" else "is higher than"
    plural = "each " if len(worse) > 1 else ""
    return [f"{listed(shown)} {plural}{what} {worse[0].arm}: what it is compared with first is not the best."]


def _not_beaten(study: Study, main: Contrast, others: Sequence[Contrast]) -> list[str]:
    """For the controls that an arm with a gain does not beat, what therefore remains possible: one bullet."""
    if main.finding not in GOOD:
        return []
    decimals = study.decimals[study.primary]
    open_ = [c for c in others if c.finding in ("undecided", "equivalent")]
    kinds = sorted(open_, key=lambda c: list(EXPLAINS).index(study.control_kind(c.control)))
    said = []
    for kind, group in groupby(kinds, key=lambda c: study.control_kind(c.control)):
        shown = [
            f"{c.control} ({signed(c.difference, decimals)} {_limits(c, decimals)}, {p_clause(c.p)}"
            f"{_own_difference(study, c, main, decimals)}"
            f"{''.join(f'; {unlike}' for unlike in study.differences(c.control, main.arm))})"
            for c in group
        ]
        said.append(
            f"It is not shown to beat {listed(shown, 'or')}: it remains possible that {EXPLAINS[kind]}."
        )
    if missing := [c for c in others if c.difference is None]:
        reasons = listed([f"{c.control} ({c.reason or 'no numbers'})" for c in missing])
        said.append(f"There is no comparison with {reasons}.")
    return [" ".join(said)] if said else []


def _own_difference(study: Study, control: Contrast, main: Contrast, decimals: int) -> str:
    """Control − main control, on all of their pairs; empty where there is no difference."""
    found = next(
        (c for c in study.between_controls if (c.arm, c.control) == (control.control, main.control)), None
    )
    if found is None or found.difference is None:
        return ""
    limits, p = _limits(found, decimals), p_clause(found.p)
    return f"; by itself {signed(found.difference, decimals)} {limits}, {p} from {main.control}"


def _other_metrics(study: Study) -> list[str]:
    """Metrics beside the primary that moved: a guard, or one that became worse."""
    moved, worse = [], []
    own = {m["name"] for m in study.sweep["metrics"] if m["kind"] == "drift"}  # any change is a drift
    for metric in study.metrics:
        c = study.contrast(study.selected, control=study.control, metric=metric, split=study.split)
        if metric == study.primary or metric in own or c is None or c.difference is None:
            continue
        decimals = study.decimals[metric]
        text = f"{metric_name(metric)} {signed(c.difference, decimals)} {_limits(c, decimals)}"
        if c.finding in ("higher", "lower"):
            moved.append(text)
        elif c.finding == "worse":
            worse.append(text)
    said = []
    if worse:
        said.append(f"Other metrics are worse than with {study.control}: {listed(worse)}.")
    if moved:
        said.append(
            f"Against {study.control} the images also changed in {listed(moved)}. A scorer may reward that "
            "alone; look at the images."
        )
    return [" ".join(said)] if said else []


def _numbers(main: Contrast) -> list[str]:
    """What the numbers of the main contrast do not say by themselves."""
    said = []
    if main.note:
        said.append(f"Against {main.control}: {main.note}.")
    smallest = 2.0 ** (1 - main.n_prompts)  # two-sided sign flips of n prompt means, however many contrasts
    if smallest > 1 - main.confidence:
        said.append(
            f"With {count(main.n_prompts, 'prompt')} the sign-flip test cannot give a p below "
            f"{p_text(smallest)}, so no difference could be shown whatever its size. Use more prompts."
        )
    if main.skewness is not None and abs(main.skewness) > SKEWED and main.n_prompts < MANY_PROMPTS:
        said.append(
            f"A few of the {main.n_prompts} prompts differ far more than the others (skewness "
            f"{signed(main.skewness, 1)}): a claim errs in up to 7\u202f% instead of 2.5 on one side; use "
            f"{MANY_PROMPTS} prompts or more."
        )
    return [" ".join(said)] if said else []


def _losses(study: Study) -> list[str]:
    said = []
    failed, missing, stopped = (study.n_trials(status) for status in ("failed", "missing", "stopped"))
    if failed or missing or stopped:
        parts = [f"{stopped} stopped early by {study.scheduler}"] * bool(stopped)
        parts += [f"{failed} failed"] * bool(failed) + [f"{missing} did not run"] * bool(missing)
        said.append(f"Of {count(study.n_trials(), 'trial')}, {listed(parts)}; they were not in the running.")
    arms = study.results.arms
    for row in arms[arms["reason"].notna()].drop_duplicates("arm_id").to_dict("records")[:3]:
        said.append(f"Left out: {row['arm']} of {study.labels[row['trial_id']]}: {row['reason']}.")
    scores = study.results.scores
    lost = int(scores["value"].isna().sum())
    if lost:
        said.append(
            f"{lost:,} of {count(len(scores), 'score')} could not be computed; a verdict holds whatever "
            "their pairs would have shown."
        )
    return [" ".join(said)] if said else []


def _limits(c: Contrast, decimals: int) -> str:
    return interval(c.low, c.high, decimals)
