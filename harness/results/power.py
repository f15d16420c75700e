"""What a design can find, and the design that finds an effect. Pure functions on numbers.

Effects, margins and errors are in units of the metric. Power is that of the two-sided t test, in the right
direction (noncentral t); the sign-flip test that has to agree costs less than a point from 12 prompts on.

Shape legend: N prompts, S noises of each prompt, T trainings of a setting.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, nctdtrinc, stdtrit

Floats = NDArray[np.float64]
MOST_PROMPTS = 100_000


def detectable_in_errors(freedom: Floats | float, *, confidence: float = 0.95, power: float = 0.8) -> Floats:
    """The effect that is found with probability `power`, in standard errors: 2.80 with many prompts."""
    critical = stdtrit(freedom, (1 + confidence) / 2)
    found: Floats = np.asarray(nctdtrinc(freedom, 1 - power, critical))
    return found


def equivalence_in_errors(freedom: Floats | float, *, confidence: float = 0.95, power: float = 0.8) -> Floats:
    """The margin within which a difference of 0 is shown to lie with probability `power`, in standard errors.

    Two one-sided t tests (Schuirmann 1987) at level 1 − `confidence`.
    """
    found: Floats = np.asarray(stdtrit(freedom, confidence) + stdtrit(freedom, (1 + power) / 2))
    return found


def power_of(effect: float, error: float, freedom: float, *, confidence: float = 0.95) -> float:
    """Probability that a true difference of this size and sign is shown."""
    return float(1 - nctdtr(freedom, abs(effect) / error, stdtrit(freedom, (1 + confidence) / 2)))


@dataclass(frozen=True, kw_only=True)
class Components:
    """Variances of a pair's difference, as a pilot shows them; None where its design cannot tell.

    The difference at prompt p, noise s of p, training t is μ + prompt_p + noise_ps + training_t +
    prompt_training_pt + residual_pst. With one training, noise is within the residual, and what a training
    adds is not seen at all; with one noise per prompt, noise is within prompt.
    """

    prompt: float
    noise: float | None
    training: float | None
    prompt_training: float | None
    residual: float | None  # with one noise and one training it is within prompt


@dataclass(frozen=True, kw_only=True)
class Design:
    """How much is generated for a contrast. With one training, the claim is about this adapter."""

    prompts: int
    noises: int = 1  # of each prompt, nested in it
    trainings: int = 1

    def variance(self, components: Components) -> float:
        """Variance of the mean difference. ValueError where trainings are planned and none were seen."""
        c, n, s, t = components, self.prompts, self.noises, self.trainings
        own = c.prompt + (0.0 if t > 1 else c.prompt_training or 0.0)
        shared = 0.0
        if t > 1:
            if c.training is None or c.prompt_training is None:
                raise ValueError(
                    "a pilot with one training says nothing about the variance between trainings"
                )
            shared = c.training / t + c.prompt_training / (n * t)
        return own / n + (c.noise or 0.0) / (n * s) + (c.residual or 0.0) / (n * s * t) + shared

    def freedom(self, components: Components) -> float:
        """Degrees of freedom: n − 1, or Satterthwaite's of the two-way mean squares."""
        n, s, t = self.prompts, self.noises, self.trainings
        if t == 1:
            return n - 1.0
        total = self.variance(components) * n * s * t
        residual = (components.residual or 0.0) + s * (components.prompt_training or 0.0)
        of_prompt = residual + t * (components.noise or 0.0) + s * t * components.prompt
        of_training = residual + n * s * (components.training or 0.0)
        parts = of_prompt**2 / (n - 1) + of_training**2 / (t - 1) + residual**2 / ((n - 1) * (t - 1))
        return max(total**2 / parts, 1.0)

    def detectable(self, components: Components, *, confidence: float = 0.95, power: float = 0.8) -> float:
        """The minimal detectable effect: the true difference that is shown with probability `power`."""
        freedom = self.freedom(components)
        in_errors = detectable_in_errors(freedom, confidence=confidence, power=power)
        return float(in_errors * np.sqrt(self.variance(components)))

    def power(self, effect: float, components: Components, *, confidence: float = 0.95) -> float:
        """Probability that this true difference is shown."""
        error = float(np.sqrt(self.variance(components)))
        return power_of(effect, error, self.freedom(components), confidence=confidence)

    def prompts_for(
        self, effect: float, components: Components, *, confidence: float = 0.95, power: float = 0.8
    ) -> int | None:
        """The fewest prompts that show this effect with probability `power`, noises and trainings as here.

        None where no number up to 100,000 does: then the variance between trainings is too large.
        """

        def enough(prompts: int) -> bool:
            design = replace(self, prompts=prompts)
            return design.detectable(components, confidence=confidence, power=power) <= abs(effect)

        return fewest(enough)


def components_of(pilot_NST: Floats) -> Components:
    """Variance components of pairs' differences [N, S, T], by the ANOVA estimators of a balanced design.

    Noises are nested in prompts, trainings crossed with both. A negative estimate is 0. Prompts with a
    missing pair are left out; at least two must remain. Unbiased but for that cut, not precise: with 4
    trainings the variance between them has 3 degrees of freedom, and its 95 % interval reaches from a third
    to 14 times the estimate.
    """
    cells = pilot_NST[np.isfinite(pilot_NST).all(axis=(1, 2))]
    n, s, t = cells.shape
    if n < 2:
        raise ValueError("variances need at least two prompts without a missing pair")
    grand = cells.mean()
    of_prompt, of_training = cells.mean(axis=(1, 2), keepdims=True), cells.mean(axis=(0, 1), keepdims=True)
    of_noise, of_both = cells.mean(axis=2, keepdims=True), cells.mean(axis=1, keepdims=True)
    ms_prompt = s * t * ((of_prompt - grand) ** 2).sum() / (n - 1)
    if t == 1:
        if s == 1:
            return _components(prompt=ms_prompt)
        within = ((cells - of_prompt) ** 2).sum() / (n * (s - 1))
        return _components(prompt=(ms_prompt - within) / s, residual=within)
    ms_training = n * s * ((of_training - grand) ** 2).sum() / (t - 1)
    ms_both = s * ((of_both - of_prompt - of_training + grand) ** 2).sum() / ((n - 1) * (t - 1))
    training = (ms_training - ms_both) / (n * s)
    if (
        s == 1
    ):  # what differs between noises is within prompt, and between their pairs within prompt × training
        return _components(prompt=(ms_prompt - ms_both) / t, training=training, prompt_training=ms_both)
    ms_noise = t * ((of_noise - of_prompt) ** 2).sum() / (n * (s - 1))
    residual_NST = cells - of_noise - of_both + of_prompt
    ms_residual = (residual_NST**2).sum() / (n * (s - 1) * (t - 1))
    return _components(
        prompt=(ms_prompt - ms_both - ms_noise + ms_residual) / (s * t),
        noise=(ms_noise - ms_residual) / t,
        training=training,
        prompt_training=(ms_both - ms_residual) / s,
        residual=ms_residual,
    )


def fewest(enough: Callable[[int], bool], *, least: int = 2) -> int | None:
    """The smallest number from `least` to 100,000 that is enough; None where none is."""
    high = least
    while not enough(high):
        if high >= MOST_PROMPTS:
            return None
        least, high = high + 1, min(2 * high, MOST_PROMPTS)
    while least < high:
        middle = (least + high) // 2
        least, high = (least, middle) if enough(middle) else (middle + 1, high)
    return high


def _components(
    *,
    prompt: float,
    noise: float | None = None,
    training: float | None = None,
    prompt_training: float | None = None,
    residual: float | None = None,
) -> Components:
    def cut(value: float | None) -> float | None:
        return None if value is None else max(float(value), 0.0)

    return Components(
        prompt=max(float(prompt), 0.0),
        noise=cut(noise),
        training=cut(training),
        prompt_training=cut(prompt_training),
        residual=cut(residual),
    )
