"""What shows only once trials, arms and files are known: a part that would do nothing is an error."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from harness.config.loading.files import one_line
from harness.config.loading.image_folder import uncaptioned
from harness.config.loading.messages import faults
from harness.config.loading.prompt_syntax import fault_of
from harness.config.plan.axes import PointsAndTrials
from harness.config.plan.plan import adapter_trial
from harness.config.schema.evaluation import (
    EFFECTIVE_GUIDANCE,
    NO_HAND_OVER,
    PROMPT,
    ArmConfig,
    CfgZeroStarGuider,
    SamplerConfig,
    Scheduler,
    negative_text,
)
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.config.schema.recipe import FolderRecipe, GeneratedRecipe
from harness.config.schema.search import FifoScheduler, LossObjective, OptunaSearch, RungObjective
from harness.config.schema.sweep import Objective, SweepConfig, TrialConfig
from harness.config.schema.training import CAPTION
from harness.config.weights.checkpoint import predicted
from harness.errors import ConfigError


def check_combinations(sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
    """Every fault where something could not be done or would do nothing."""
    configs = [config for _, config in trials]
    yield from _sampler(sweep)
    yield from _compute(sweep, configs)
    yield from _search(sweep, configs)
    yield from _scheduler(sweep, configs)
    for arm in sweep.arms:
        yield from _guided(sweep, arm)
        yield from _matched(sweep, arm)
        yield from _damaged(sweep, arm)
    for config in configs:
        yield from _captions(config, "training.prompt")
        yield from _holdout(config)
        yield from _model(sweep, config)
        yield from _min_snr(config)
        for arm in sweep.arms:
            yield from _arm(sweep, arm, config)


def check_prompt_syntax(sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
    """Every place with a text that means something else than it looks."""
    for where, texts in _texts(sweep, [config for _, config in trials]).items():
        trained = where.endswith("training.prompt")
        for text in dict.fromkeys(texts):
            if trained and CAPTION in text:  # data, read letter for letter
                continue
            if (fault := fault_of(text, trained=trained)) is not None:
                yield f"{where}: {one_line(text, 60)!r}: {fault}"
                break


def check_prompt_lengths(sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
    """No text is longer than a model's tokenizer takes; the rest of it would be dropped without a word."""
    from harness.config.loading import tokens

    configs = [config for _, config in trials]
    for model in dict.fromkeys(config.model for config in configs):
        for where, texts in _texts(sweep, [config for config in configs if config.model == model]).items():
            try:
                tokens.check_prompt_lengths(model, dict.fromkeys(texts))
            except ConfigError as error:
                yield f"{where}: {error}"
                return


def check_disjoint_prompts(sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
    """No test prompt reads like a dev prompt, and neither like one that training images are made from.

    Upper case, punctuation and compel's weights do not tell two prompts apart.
    """
    from harness.config.loading.tokens import plain_text

    def read(text: str) -> str:
        return " ".join(re.findall(r"\w+", plain_text(text).lower()))

    by_split = {
        split: {read(p.text): p.text for p in sweep.prompts if p.split == split} for split in ("dev", "test")
    }
    if both := sorted(by_split["dev"].keys() & by_split["test"].keys()):
        dev, test = (by_split[split][both[0]] for split in ("dev", "test"))
        yield (
            f"prompts: {test!r} (test) reads like {dev!r} (dev), {_and_more(both)}and a prompt that selects "
            "cannot confirm; change or remove one of the two"
        )
    known = {**by_split["test"], **by_split["dev"]}
    for where, texts in _texts(sweep, [config for _, config in trials]).items():
        if not where.endswith(("recipe", "sham", "training.prior")):
            continue
        drawn = {read(text): text for text in texts}
        if both := sorted(drawn.keys() & known.keys()):
            yield (
                f"{where}: {drawn[both[0]]!r} is also one of prompts ({known[both[0]]!r}), {_and_more(both)}"
                "and an adapter is not tested on what its training images show; change or remove one"
            )


def _and_more(found: Sequence[str]) -> str:
    return f"as {len(found) - 1} more do, " if len(found) > 1 else ""


def _sampler(sweep: SweepConfig) -> Iterator[str]:
    if sweep.sampler.guidance_rescale and not any(
        sweep.sampler.guidance_of(arm).scale > 1 for arm in sweep.arms
    ):
        yield "sampler.guidance_rescale is not used: no arm has a guidance above 1"
    if sweep.sampler.scheduler in NO_HAND_OVER and sweep.sampler.refiner_start is not None:
        yield (
            f"sampler.scheduler: {sweep.sampler.scheduler} cannot hand over to a refiner; set refiner_start: "
            f"null, or one of {', '.join(sorted(set(get_args(Scheduler)) - NO_HAND_OVER))}"
        )


def _compute(sweep: SweepConfig, configs: Sequence[TrialConfig]) -> Iterator[str]:
    workers = sweep.compute.training_workers
    trained = [config.training for config in configs if config.training]
    sections = [*trained, *(a.training for arm in sweep.arms for a in arm.adapters if a.training)]
    rows = min((section.batch_size * section.gradient_accumulation for section in sections), default=workers)
    if rows < workers:
        yield (
            f"compute: {workers} processes train one trial, and a step has {rows} rows for them "
            "(training.batch_size × gradient_accumulation); give it more, or lower workers_per_trial"
        )


def _search(sweep: SweepConfig, configs: Sequence[TrialConfig]) -> Iterator[str]:
    if not isinstance(sweep.search, OptunaSearch):
        return
    for place, objective in enumerate(sweep.search.objectives):
        yield from _objective(sweep, configs, objective, f"search.objectives[{place}]")
        if objective in sweep.search.objectives[:place]:
            yield f"search.objectives[{place}]: is given twice"


def _scheduler(sweep: SweepConfig, configs: Sequence[TrialConfig]) -> Iterator[str]:
    scheduler = sweep.scheduler
    if isinstance(scheduler, FifoScheduler):
        return
    if not any(config.training and scheduler.rungs(config.training.steps) for config in configs):
        yield f"scheduler.grace: no run is longer than {scheduler.grace} steps; nothing could be stopped"
    if sweep.compute.training_workers > 1:
        yield f"scheduler: {scheduler.kind} is for runs of one process; set compute.workers_per_trial: 1"
    yield from _objective(sweep, configs, scheduler.objective, "scheduler.objective")
    if not isinstance(scheduler.objective, RungObjective):
        return
    dev = [prompt for prompt in sweep.prompts if prompt.split == "dev"]
    for name, asked, there in (
        ("prompts", scheduler.objective.prompts, len(dev)),
        ("seeds", scheduler.objective.seeds, len(sweep.seeds)),
    ):
        if asked > there:
            yield f"scheduler.objective.{name}: {asked} of {there}; allowed: at most {there}"
    meant = sweep.meant(scheduler.objective)
    for arm in sweep.arms:
        apart = [adapter for adapter in arm.adapters if adapter.is_trained_apart]
        if apart and arm.name in (getattr(meant, "arm", None), getattr(meant, "control", None)):
            yield (
                f"scheduler.objective: {arm.name} has images of an adapter that is trained apart, and each "
                "rung would wait for it; choose arms with the trial's own adapter, a file's, or none"
            )


def _objective(
    sweep: SweepConfig, configs: Sequence[TrialConfig], objective: Objective, where: str
) -> Iterator[str]:
    """What a trial is judged by exists and has a better direction."""
    meant = sweep.meant(objective)
    if isinstance(meant, LossObjective):
        if any(config.training is None or config.training.holdout == 0 for config in configs):
            yield f"{where}: validation_loss needs training.holdout in every trial: images kept from it"
        return
    allowed: dict[str, list[str]] = {
        "metric": [metric.name for metric in sweep.metrics if metric.higher_is_better is not None],
        "arm": [arm.name for arm in sweep.arms if not arm.is_control],
        "control": [arm.name for arm in sweep.arms if arm.can_select],
    }
    for name, names in allowed.items():
        if getattr(meant, name) not in names:
            yield f"{where}.{name}: {getattr(meant, name)} cannot be compared; allowed: {', '.join(names)}"


def _captions(config: TrialConfig, where: str) -> Iterator[str]:
    recipe, training = config.recipe, config.training
    if not isinstance(recipe, FolderRecipe) or recipe.captioned or training is None:
        return
    if CAPTION in training.prompt:
        yield (
            f"{where}: {CAPTION} needs a caption for every image of {one_line(recipe.path, 80)} "
            f"(fox.txt beside fox.png, or metadata.jsonl); none has {uncaptioned(recipe.path)}"
        )


def _model(sweep: SweepConfig, config: TrialConfig) -> Iterator[str]:
    if (
        isinstance(config.model, SdxlModel)
        and config.model.refiner is None
        and sweep.sampler.refiner_start is not None
    ):
        yield "sampler.refiner_start: the model has no refiner; set it to null, or give model.refiner"
    if isinstance(config.model, EmojiModel):
        yield from _steps_of_the_refiner("sampler", sweep.sampler)
        if isinstance(config.recipe, GeneratedRecipe):
            yield from _steps_of_the_refiner("recipe", config.recipe)


def _min_snr(config: TrialConfig) -> Iterator[str]:
    """Where the model is known to predict ε, what is said of v does nothing."""
    training = config.training
    if training is None or training.min_snr_v == "kohya":
        return
    if predicted(config.model) == "epsilon":
        yield "training.min_snr_v is of models that predict v, and model predicts epsilon; remove it"


def _holdout(config: TrialConfig) -> Iterator[str]:
    if config.recipe is None or config.training is None:
        return
    count = config.recipe.count
    if count is not None and config.training.holdout >= count:
        yield (
            f"training.holdout: {config.training.holdout} leaves nothing of {count} images to train on; "
            f"at most {count - 1}"
        )


def _steps_of_the_refiner(where: str, drawn: SamplerConfig | GeneratedRecipe) -> Iterator[str]:
    """The embedded model walks equal steps from the noisiest on; other models' spacing is theirs to say."""
    if drawn.refiner_start is not None and drawn.steps * (1 - drawn.refiner_start) < 1 - 1e-9:
        yield (
            f"{where}.steps: {drawn.steps} with refiner_start: {drawn.refiner_start:g} leaves no step to the "
            "refiner; take more steps, or set refiner_start: null"
        )


def _arm(sweep: SweepConfig, arm: ArmConfig, config: TrialConfig) -> Iterator[str]:
    for place, adapter in enumerate(arm.adapters):
        where = f"arms.{arm.name}.adapters[{place}]"
        if adapter.branch == "negative" and sweep.sampler.guidance_of(arm).scale <= 1:
            yield (
                f"{where}: at a guidance of at most 1 no negative rows are computed, so branch: negative "
                "cannot act"
            )
        if adapter.scale == 0:
            yield f"{where}.scale: 0 does nothing; leave the adapter out"
        if adapter.is_file or (adapter.is_own and not config.is_trained):
            if adapter.weights == "ema":
                yield f"{where}.weights: ema is of a training run; give the averaged file itself as file"
            continue
        if adapter.sham is not None and not config.is_trained:
            yield f"{where}.sham: the trial's adapter is a file, and nothing is trained like it; remove it"
            continue
        try:
            trained = adapter_trial(config, adapter)
        except ValueError as error:
            yield f"{where}.sham: {error}"
            continue
        try:
            if not adapter.is_own:
                TrialConfig.model_validate(dict(trained))  # its parts were validated, but not together
        except ValidationError as error:
            yield from (f"{where}: {fault.line(fault.name)}" for fault in faults(error, TrialConfig))
            continue
        if not adapter.is_own:
            yield from _captions(trained, f"{where}.training.prompt")
        if adapter.weights == "ema" and trained.trained.training.ema is None:
            yield f"{where}.weights: ema needs training.ema, a decay such as 0.99"


def _guided(sweep: SweepConfig, arm: ArmConfig) -> Iterator[str]:
    """What shapes an arm's guidance has an effect, whatever the trial."""
    where, guidance = f"arms.{arm.name}", sweep.sampler.guidance_of(arm).scale
    if found := [name for name in re.findall(r"\{\w+\}", arm.negative) if name != PROMPT]:
        yield f"{where}.negative: {found[0]} is not known; allowed: {PROMPT}, the image's own prompt"
    alike = all(adapter.branch == "both" for adapter in arm.adapters)
    if arm.negative.strip() == PROMPT and guidance > 1 and alike:
        yield (
            f"{where}.negative: {PROMPT} makes both branches alike, so guidance does nothing; add an adapter "
            "on one branch, or set guidance: 1"
        )
    for name, given in (("guidance_interval", arm.guidance_interval), ("guider", arm.guider)):
        if given is not None and guidance <= 1:
            yield f"{where}.{name}: a guidance of at most 1 is none, so it does nothing; leave it out"
    guider = arm.guider or sweep.sampler.guider
    if isinstance(guider, CfgZeroStarGuider) and guider.zero_init_steps and sweep.sampler.guidance_rescale:
        yield (
            f"{where}.guider: the first steps of cfg_zero_star are zeros, which nothing can rescale; "
            "set zero_init_steps: 0, or sampler.guidance_rescale: 0"
        )
    yield from _interval(sweep, arm)


def _matched(sweep: SweepConfig, arm: ArmConfig) -> Iterator[str]:
    """A guidance that is searched for once a trial is selected can be found, and nothing waits for it."""
    if arm.match is None:
        return
    where, match = f"arms.{arm.name}.match", arm.match
    guidances = {a.name: sweep.sampler.guidance_of(a).scale for a in sweep.arms if not a.is_control}
    if match.arm not in guidances:
        yield f"{where}.arm: {match.arm} has no adapter of the trial; allowed: {', '.join(guidances)}"
    elif match.between is None and guidances[match.arm] <= 1:
        yield f"{where}.between: {match.arm} has no guidance above 1; give [lowest, highest]"
    allowed = [metric.name for metric in sweep.metrics if metric.name != sweep.analysis.primary]
    if match.by not in (*allowed, EFFECTIVE_GUIDANCE):
        why = "is what is compared" if match.by == sweep.analysis.primary else "is not known"
        yield f"{where}.by: {match.by} {why}; allowed: {', '.join([*allowed, EFFECTIVE_GUIDANCE])}"


def _damaged(sweep: SweepConfig, arm: ArmConfig) -> Iterator[str]:
    """A control with a damage has a twin to be compared with."""
    labels: dict[str, Any] = {"name": "twin", "family": None, "params": {}, "added": False}
    bare = arm.model_copy(update={**labels, "post": None})
    twins = [other for other in sweep.arms if other.model_copy(update=labels) == bare]
    if arm.post is not None and arm.is_control and not twins:
        yield f"arms.{arm.name}.post: no other arm is like it without the damage; add it"


def without_effect(sweep: SweepConfig) -> Iterator[str]:
    """Negative prompts that act in no step: no fault, since such an arm can be a control."""
    unguided = []
    for arm in sweep.arms:
        scale, interval, guider = sweep.sampler.guidance_of(arm)
        last = sweep.sampler.steps if interval is None else int(interval[1] * sweep.sampler.steps)
        zeros = guider.zero_init_steps if isinstance(guider, CfgZeroStarGuider) else 0
        if arm.negative.strip() and (scale <= 1 or zeros >= last):
            unguided.append(arm.name)
    if unguided:
        yield (
            f"warning: the negative prompt does nothing in {', '.join(unguided)}: no step is guided (a "
            "guidance of at most 1, or an interval of which the guider leaves no step)"
        )


def _interval(sweep: SweepConfig, arm: ArmConfig) -> Iterator[str]:
    """An interval holds a step, and one of the base's where an adapter acts on one branch alone."""
    interval = arm.guidance_interval or sweep.sampler.guidance_interval
    if interval is None:
        return
    where = f"arms.{arm.name}" if arm.guidance_interval else "sampler"
    steps, of_base = sweep.sampler.steps, sweep.sampler.refiner_start or 1.0
    first, last = (int(share * steps) for share in interval)
    if first == last:
        yield f"{where}.guidance_interval: {list(interval)} holds none of the {steps} steps"
    elif first >= of_base * steps and any(adapter.branch == "negative" for adapter in arm.adapters):
        yield (
            f"{where}.guidance_interval: begins with the refiner, on which no adapter acts, so branch: "
            f"negative cannot act; begin below {of_base:g}"
        )


def _texts(sweep: SweepConfig, configs: Sequence[TrialConfig]) -> dict[str, list[str]]:
    """Every text that the model of these trials will encode, by where it stands."""
    others = [
        (
            f"arms.{arm.name}.adapters[{place}]",
            "sham" if adapter.sham else "recipe",
            adapter_trial(config, adapter),
        )
        for arm in sweep.arms
        for place, adapter in enumerate(arm.adapters)
        if adapter.is_trained_apart
        for config in configs
    ]
    texts: dict[str, list[str]] = {
        "prompts": [prompt.text for prompt in sweep.prompts],
        **{
            f"arms.{arm.name}.negative": [negative_text(arm.negative, p.text) for p in sweep.prompts]
            for arm in sweep.arms
        },
    }
    for where, source, config in [("", "recipe", config) for config in configs] + others:
        section = f"{where}." if where else ""
        if not config.is_trained:
            continue
        recipe, _, training = config.trained
        prior = training.prior
        texts.setdefault(f"{section}training.prompt", []).append(training.prompt)
        texts.setdefault(f"{section}{source}", []).extend(recipe.texts)
        if prior is not None:
            texts.setdefault(f"{section}training.prior", []).extend([prior.prompt, *prior.recipe.texts])
    return texts
