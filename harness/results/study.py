"""What the page reads from the tables: which trial, which arm, which split, and every contrast as a value."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import metric_of
from harness.config.schema.search import OptunaSearch
from harness.errors import ConfigError
from harness.results.contrast import BAD, GOOD, Contrast, known, text
from harness.results.format import MISSING, axis_value, decimals_for
from harness.results.guidance import (
    damage_text,
    effect_of_guidance,
    guidance_of,
    in_guidance_units,
    match_text,
)
from harness.results.likeness import BETTER_NEEDS, ControlKind, Need, control_kind, differences, serves
from harness.results.objectives import front, gains
from harness.results.power import Components, Floats, components_of
from harness.results.summary import summarise

if TYPE_CHECKING:
    from harness.results.sweep_results import Results


LABELS = frozenset({"name", "family", "params", "added"})
NOT_OF_THE_LADDER = LABELS | {"guidance", "match"}
NOT_OF_A_TWIN = LABELS | {"post"}


@dataclass(frozen=True)
class Study:
    """A sweep, finished or as it grows, seen from its question."""

    results: "Results"

    @property
    def sweep(self) -> dict[str, Any]:
        """The sweep as it was read, with versions, host and times."""
        return self.results.sweep

    @property
    def primary(self) -> str:
        """The metric that selects."""
        return str(self.sweep["analysis"]["primary"])

    @property
    def control(self) -> str:
        """The control that the selection is made against."""
        return str(self.sweep["analysis"]["control"])

    @property
    def metrics(self) -> list[str]:
        """Metrics in the sweep's order."""
        return [metric["name"] for metric in self.sweep["metrics"]]

    @property
    def finished(self) -> bool:
        """False for a sweep that is still being run: nothing is selected or tested then."""
        return self.sweep["finished_at"] is not None

    def higher_is_better(self, metric: str) -> bool | None:
        """A metric's better direction; None where it has none."""
        return self.directions.get(metric)

    @cached_property
    def directions(self) -> dict[str, bool | None]:
        """Each metric's better direction, as the summary has it."""
        rows = self.results.summary.drop_duplicates("metric").set_index("metric")["higher_is_better"]
        return {str(metric): None if known(value) is None else bool(value) for metric, value in rows.items()}

    @cached_property
    def controls(self) -> list[str]:
        """Control arms in the sweep's order."""
        named = set(self.results.arms.loc[self.results.arms["is_control"].astype(bool), "arm"])
        return [arm["name"] for arm in self.sweep["arms"] if arm["name"] in named]

    @cached_property
    def adapter_arms(self) -> list[str]:
        """Arms in which the trial's own adapter acts, in the sweep's order."""
        return [arm["name"] for arm in self.sweep["arms"] if arm["name"] not in self.controls]

    def arm_config(self, name: str) -> dict[str, Any]:
        """An arm as the sweep describes it."""
        found: dict[str, Any] = next(arm for arm in self.sweep["arms"] if arm["name"] == name)
        return found

    def arm_id(self, name: str) -> str | None:
        """The images of an arm of the selected trial; None where there is none."""
        arms = self.results.arms
        found = arms.loc[(arms["trial_id"] == self.selected) & (arms["arm"] == name), "arm_id"]
        return text(found.iloc[0]) if len(found) else None

    def control_kind(self, name: str, arm: str | None = None) -> ControlKind:
        """What a control holds fixed beside an arm; None: the headline's."""
        beside = self.arm_config(arm or self.arm)
        return control_kind(
            self.arm_config(name), beside, own=self._own_config, sampler=self.sweep["sampler"]
        )

    def differences(self, name: str, arm: str | None = None) -> list[str]:
        """In what a control differs from an arm (None: the headline's) beside what it controls for."""
        beside = self.arm_config(arm or self.arm)
        return differences(self.arm_config(name), beside, own=self._own_config, sampler=self.sweep["sampler"])

    def serving(self, need: Need, arm: str) -> list[str]:
        """The controls that are what a headline needs beside an arm."""
        beside, sampler = self.arm_config(arm), self.sweep["sampler"]
        return [
            name for name in self.controls if serves(need, self.arm_config(name), beside, sampler=sampler)
        ]

    def unmet(self, main: Contrast, contrasts: Sequence[Contrast]) -> dict[Need, list[str]]:
        """Of the controls that a gain needs, those that it is not one over; empty where there is no gain.

        A need with no control is one that the sweep lacks.
        """
        if main.finding not in GOOD:
            return {}
        beaten = {c.control for c in contrasts if c.finding in GOOD}
        needed = {need: self.serving(need, main.arm) for need in BETTER_NEEDS}
        return {need: names for need, names in needed.items() if not names or not beaten.issuperset(names)}

    @cached_property
    def _own_config(self) -> dict[str, Any] | None:
        """The configuration of the selected trial; None where there is none."""
        trials = self.results.trials
        configs = trials.loc[trials["trial_id"] == self.selected, "config"]
        found: dict[str, Any] | None = json.loads(configs.iloc[0]) if len(configs) else None
        return found

    @property
    def search(self) -> str:
        """How the trials were chosen: grid, random or optuna."""
        return str(self.sweep.get("search", {}).get("kind", "grid"))

    @cached_property
    def pareto_front(self) -> list[str]:
        """The trials that none beats in all of a search's objectives; empty where it has but one."""
        if self.search != "optuna":
            return []
        objectives = OptunaSearch.model_validate(self.sweep["search"]).objectives
        if len(objectives) < 2:
            return []
        return front(gains(self.results.trials, self.results.summary, objectives))

    @property
    def scheduler(self) -> str:
        """What may have stopped training runs: fifo (nothing), asha or median."""
        return str(self.sweep.get("scheduler", {}).get("kind", "fifo"))

    @cached_property
    def axes(self) -> list[str]:
        """Dotted names of the axes that really vary, in the sweep's order."""
        trials = self.results.trials
        return [
            axis for axis in self.sweep["axes"] if axis in trials and trials[axis].nunique(dropna=False) > 1
        ]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Trial id → what people call the trial; unique."""
        trials = self.results.trials
        texts = [
            " · ".join(axis_value(axis, row[axis]) for axis in self.axes if known(row[axis]) is not None)
            or f"trial {row['index']}"
            for _, row in trials.iterrows()
        ]
        return {
            trial_id: text if texts.count(text) == 1 else f"{text} (trial {index})"
            for trial_id, index, text in zip(trials["trial_id"], trials["index"], texts, strict=True)
        }

    @cached_property
    def selected(self) -> str | None:
        """The trial that was best on dev prompts; null when none was usable."""
        trials = self.results.trials
        chosen = trials.loc[trials["selected"].fillna(False).astype(bool), "trial_id"]
        return str(chosen.iloc[0]) if len(chosen) else None

    @cached_property
    def contrasts(self) -> dict[tuple[str, str, str, str, str], Contrast]:
        """Every contrast by (trial, arm, control, metric, split)."""
        found = (Contrast.of(row) for row in self.results.summary.to_dict("records"))
        return {(c.trial_id, c.arm, c.control, c.metric, c.split): c for c in found}

    def contrast(
        self,
        trial_id: str | None,
        *,
        control: str,
        arm: str | None = None,
        metric: str | None = None,
        split: str,
    ) -> Contrast | None:
        """One contrast; of the headline arm and the primary metric unless given. Null when not there."""
        return self.contrasts.get((trial_id or "", arm or self.arm, control, metric or self.primary, split))

    @cached_property
    def rivals(self) -> list[str]:
        """Controls that could explain a gain: all but those with a damage, which try the metrics."""
        return [name for name in self.controls if self.arm_config(name)["post"] is None]

    @cached_property
    def known_damage(self) -> list[tuple[str, Contrast, bool]]:
        """Controls with a damage, each with the contrast to its twin without, and whether it is found."""
        found = []
        for name in (name for name in self.controls if name not in self.rivals):
            bare = _but_for(self.arm_config(name), NOT_OF_A_TWIN)
            twins = [n for n in self.rivals if _but_for(self.arm_config(n), NOT_OF_A_TWIN) == bare]
            both = [c for c in self.between_controls if {c.arm, c.control} == {name, *twins[:1]}]
            found += [(name, c, c.finding in (BAD if c.arm == name else GOOD)) for c in both]
        return found

    def against(self, *, split: str, metric: str | None = None) -> Iterator[Contrast]:
        """Contrasts of the selected trial with each of `rivals`, in the sweep's order."""
        for control in self.rivals:
            found = self.contrast(self.selected, control=control, metric=metric, split=split)
            if found is not None:
                yield found

    @cached_property
    def between_controls(self) -> tuple[Contrast, ...]:
        """The controls of the selected trial against each other on the primary metric: each pair once.

        On the split of the verdict; p is adjusted over those against one control. The first are those against
        the main control.
        """
        results = self.results
        controls = sorted(self.controls, key=lambda name: name != self.control)
        rows = summarise(
            results.trials[results.trials["trial_id"] == self.selected],
            results.arms,
            results.images,
            results.scores,
            against={name: controls[place:] for place, name in enumerate(controls[:-1], 1)},
            analysis=AnalysisConfig.model_validate(self.sweep["analysis"]),
            metrics=[metric_of(one) for one in self.sweep["metrics"] if one["name"] == self.primary],
        )
        found = (Contrast.of(row) for row in rows[rows["split"] == self.split].to_dict("records"))
        return tuple(sorted(found, key=lambda c: controls.index(c.control)))

    @cached_property
    def arm(self) -> str:
        """The adapter arm of the headline: the selected trial's best."""
        return self.best_arm(self.selected)

    def best_arm(self, trial_id: str | None) -> str:
        """Of the arms with a trial's adapter, the best on dev prompts; the first where none has numbers."""
        gains = {
            arm: c.gain
            for arm in self.adapter_arms
            if (c := self.contrasts.get((trial_id or "", arm, self.control, self.primary, "dev")))
            and c.gain is not None
        }
        return max(gains, key=lambda arm: gains[arm]) if gains else self.adapter_arms[0]

    @cached_property
    def split(self) -> Literal["dev", "test"]:
        """The split the verdict rests on."""
        return self.split_of(self.selected)

    def split_of(self, trial_id: str | None) -> Literal["dev", "test"]:
        """Test where a trial's best arm has numbers there on the primary metric, else dev."""
        arm = self.best_arm(trial_id)
        tested = (
            self.contrast(trial_id, arm=arm, control=control, split="test") for control in self.controls
        )
        return "test" if any(c is not None and c.difference is not None for c in tested) else "dev"

    @cached_property
    def pilot_NST(self) -> Floats:
        """Dev differences of the headline's arm from its control, prompts × seeds × trainings; NaN: no pair.

        Trainings are the trials that differ from the selected one in `training.seed` alone.
        """
        pairs = self.results.pairs(control=self.control, arm=self.arm, split="dev")
        trials = self.results.trials.set_index("trial_id")["config"].map(_without_seed)
        alike = trials.index[trials == trials.get(self.selected)]
        pairs = pairs[(pairs["metric"] == self.primary) & pairs["trial_id"].isin(alike)]
        sizes = [pairs[key].nunique() for key in ("prompt_id", "seed", "trial_id")]
        block_NST = np.full(sizes, np.nan)
        places = [pd.factorize(pairs[key])[0] for key in ("prompt_id", "seed", "trial_id")]
        block_NST[tuple(places)] = pairs["difference"].astype(float)
        return block_NST

    def pilot_components(self) -> Components:
        """The variances of a pair's difference on dev. Raises ConfigError where two prompts are not there."""
        try:
            return components_of(self.pilot_NST)
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"sweep {self.sweep['name']} is no pilot: it has not two dev prompts with all of their pairs"
            ) from error

    def about(self, name: str) -> str:
        """What an arm is beside its name: a damage, a matched guidance, what else differs."""
        arm = self.arm_config(name)
        if arm["post"] is not None:
            return damage_text(arm)
        said = [match_text(arm)] if arm["match"] is not None else []
        return "; ".join(said + (self.differences(name) if name in self.controls else []))

    def margin_to_propose(self) -> float | None:
        """What 0.1 more guidance does to the control, in size; None without a control at another guidance."""
        own = guidance_of(self.arm_config(self.control), self.sweep["sampler"])
        ladder = self._ladder(self.control, split="dev")
        found = effect_of_guidance(0.1, ladder, own=own) if ladder else None
        return abs(found) if found else None

    def in_guidance_units(self, c: Contrast) -> tuple[float | None, float, str | None]:
        """The guidance at which the control alone would have a difference as large, its own, and why none.

        From controls of the sweep that differ from it in guidance alone.
        """
        own = guidance_of(self.arm_config(c.control), self.sweep["sampler"])
        ladder = self._ladder(c.control, split=c.split, metric=c.metric)
        if c.difference is None:
            return None, own, c.reason
        if not ladder:
            return None, own, f"the sweep has no control like {c.control} at another guidance"
        if (found := in_guidance_units(c.difference, ladder, own=own)) is None:
            ends = "{:g} to {:g}".format(*(end({*ladder, own}) for end in (min, max)))
            return None, own, f"no guidance from {ends} makes such a difference from {c.control}"
        return found, own, None

    def as_guidance(self, c: Contrast) -> str:
        """The same for a table: `2 → 2.16`; an em dash where there is none."""
        found, own, _ = self.in_guidance_units(c)
        return MISSING if found is None else f"{own:g} → {found:.2f}"

    def has_ladder(self, contrasts: Sequence[Contrast]) -> bool:
        """Whether any of these can be said in units of guidance."""
        return any(self.in_guidance_units(c)[0] is not None for c in contrasts)

    def _ladder(self, control: str, *, split: str, metric: str | None = None) -> dict[float, float]:
        """Mean differences from a control of those that differ from it in guidance alone, by guidance."""
        sampler, plain = self.sweep["sampler"], self.arm_config(control)
        means = {c.control: c.mean_control for c in self.against(split=split, metric=metric)}
        found = {}
        for name, mean in means.items():
            arm = self.arm_config(name)
            same = _but_for(arm, NOT_OF_THE_LADDER) == _but_for(plain, NOT_OF_THE_LADDER)
            if same and mean is not None and (base := means[control]) is not None:
                found[guidance_of(arm, sampler)] = mean - base
        found.pop(guidance_of(plain, sampler), None)
        return found

    @property
    def looks(self) -> list[dict[str, Any]]:
        """Looks at any of the sweep's test prompts in its store, in order, its own last (see `ledger`)."""
        found: list[dict[str, Any]] = self.sweep["looks"]
        return found

    @property
    def confirmatory(self) -> bool:
        """Whether the verdict rests on test prompts that nothing else was looked at with before."""
        return self.split == "test" and len(self.looks) < 2

    @property
    def has_test_prompts(self) -> bool:
        """True where the sweep holds prompts out."""
        return any(prompt["split"] == "test" for prompt in self.sweep["prompts"])

    @cached_property
    def decimals(self) -> dict[str, int]:
        """Decimals that a metric's differences deserve, from the width of its intervals."""
        summary = self.results.summary
        widths = (summary["ci_high"] - summary["ci_low"]).groupby(summary["metric"]).median()
        return {metric: decimals_for(float(widths.get(metric, math.nan))) for metric in self.metrics}

    def n_trials(self, status: str | None = None) -> int:
        """Number of trials, or of those with a status."""
        trials = self.results.trials
        return len(trials) if status is None else int((trials["status"] == status).sum())


def _but_for(arm: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in arm.items() if key not in keys}


def _without_seed(config: str) -> str:
    """A trial's configuration but for the seed of its training."""
    parsed = json.loads(config)
    parsed["training"].pop("seed")
    return json.dumps(parsed, sort_keys=True)
