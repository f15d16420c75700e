"""How often the statistics are wrong: simulations of the harness's own functions against stated bars.

    python -m benchmarks.error_rates [--samples 4000] [--only coverage family …] [--all]

Every line of the table is a rate in per cent (or what its name says), with the bar that it has to keep. Lines
named "not used" are methods that the harness does not use, and must fail: they show that the bar can.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from harness.results import inference
from harness.results.inference import Estimates, estimate_crossed, max_t_p
from harness.results.power import Components, Design, components_of
from harness.results.sequential import Shape, follow, plan_looks
from harness.results.verdicts import Losses, Rule, decide, fill_lost

Floats = NDArray[np.float64]
INF = float("inf")
PATTERNS = 4_096  # all of them up to 12 prompts


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One simulated number and the bar that it has to keep."""

    what: str
    case: str
    value: float
    low: float = -INF
    high: float = INF

    @property
    def kept(self) -> bool:
        """Whether the number is within its bar."""
        return self.low <= self.value <= self.high

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.low == -INF:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high == INF else f"{self.low:g} to {self.high:g}"


def prompt_effects(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Prompt-level differences [N, …] with mean 0 and variance 1."""
    match kind:
        case "normal":
            return rng.normal(size=shape)
        case "t3":
            return rng.standard_t(3, size=shape) / np.sqrt(3)
        case "heteroscedastic":  # prompts differ in spread
            sd = np.exp(rng.normal(size=(shape[0], *[1] * (len(shape) - 1))))
            return rng.normal(size=shape) * sd / np.sqrt(np.mean(sd**2))
        case "ties":
            return np.round(rng.normal(size=shape)) / np.sqrt(1.083)
        case "60 % zeros":
            return np.where(rng.random(shape) < 0.6, 0.0, rng.normal(size=shape)) / np.sqrt(0.4)
        case "exponential":
            return rng.exponential(size=shape) - 1
        case "lognormal, left":
            return (np.exp(0.5) - np.exp(rng.normal(size=shape))) / np.sqrt((np.e - 1) * np.e)
        case "a few fall":  # one prompt in ten by three sd, the rest gain a little
            x = np.where(rng.random(shape) < 0.1, -3.0, 1 / 3) + 0.3 * rng.normal(size=shape)
            return np.asarray(x / np.sqrt(0.9 + 0.1 + 0.09))
    raise ValueError(kind)


def coverage(samples: int, prompts: tuple[int, ...] = (6, 8, 12, 24, 48)) -> Iterator[Rate]:
    """Coverage of the 95 % t interval, level of the sign-flip test, and methods that are not used."""
    bars = {
        "normal": (94.0, 97.0),
        "t3": (94.0, 97.0),
        "heteroscedastic": (94.0, 97.0),
        "ties": (94.0, 97.0),
        "60 % zeros": (94.0, 99.7),
        "exponential": (93.0, 97.0),
        "lognormal, left": (92.5, 97.0),
    }
    for kind, (low, high) in bars.items():
        for n in prompts:
            if n < 12 and kind in ("exponential", "lognormal, left"):
                continue
            rng = np.random.default_rng([1, n])
            means_NK = prompt_effects(kind, (n, samples), rng)
            if kind not in (
                "ties",
                "60 % zeros",
            ):  # half of a pair's variance lies between its prompt's 2 noises
                means_NK = np.sqrt(0.5) * means_NK + 0.5 * rng.normal(size=(n, samples))
            found = estimate_prompts(means_NK)
            case = f"{kind}, {n} prompts"
            least = 93.5 if kind == "ties" and n < 12 else low  # 8 rounded normals: 93.8 in 400,000
            yield Rate(what="t interval: coverage", case=case, value=_covers(found), low=least, high=high)
            if n >= 12 and kind in ("normal", "t3", "heteroscedastic", "ties"):
                least = 0.0 if kind == "ties" else 4.0
                rejected = 100 * float(np.mean(found.p_K < 0.05))
                yield Rate(what="sign flips: p < .05", case=case, value=rejected, low=least, high=6.0)
    rng = np.random.default_rng(2)
    pairs_NSK = rng.normal(size=(12, 1, samples)) * 0.7 + rng.normal(size=(12, 2, samples)) * 0.7
    pairs_NSK[rng.random(pairs_NSK.shape) < 0.3] = np.nan
    kept_NSK = np.where(np.isnan(pairs_NSK), 0.0, pairs_NSK)
    with np.errstate(invalid="ignore"):
        means_NK = kept_NSK.sum(axis=1) / np.isfinite(pairs_NSK).sum(axis=1)
    case = "30 % of pairs missing at random, 12 prompts"
    yield Rate(
        what="t interval: coverage", case=case, value=_covers(estimate_prompts(means_NK)), low=93, high=96.5
    )
    means_NK = np.random.default_rng(3).normal(size=(12, samples))
    for name, limits in (("percentile bootstrap", percentile), ("BCa bootstrap", bca)):
        low_K, high_K = limits(means_NK)
        value = 100 * float(np.mean((low_K <= 0) & (high_K >= 0)))
        yield Rate(what=f"not used, {name}: coverage", case="normal, 12 prompts", value=value, high=93)


def noises(samples: int, prompts: tuple[int, ...] = (12, 24, 48)) -> Iterator[Rate]:
    """Noises of each prompt's own, and noises that all prompts share."""
    rng = np.random.default_rng(4)
    for share in (0.0, 0.10, 0.45):
        rest = (1 - share) / 2
        for n in prompts:
            for s in (1, 2, 4):
                pairs_NSK = _two_factors(rng, (n, s, samples), (rest, share, rest), nested=True)
                found = estimate_prompts(pairs_NSK.mean(axis=1))
                case = f"noise {share:.0%} of the variance, {n} prompts × {s}"
                yield Rate(what="own noises: coverage", case=case, value=_covers(found), low=93.5, high=96.5)
                yield Rate(what="own noises: claims", case=case, value=_claims(found), high=6.0)
    for share in (0.10, 0.45):
        rest = (1 - share) / 2
        for n, s in ((12, 2), (48, 2), (12, 8), (48, 8)):
            pairs_NSK = _two_factors(rng, (n, s, samples), (rest, share, rest), nested=False)
            case = f"noise {share:.0%} of the variance, {n} prompts × {s}"
            found = estimate_crossed(pairs_NSK, factor="noise")
            least = 87.5 if s < 4 else 93.5
            yield Rate(what="shared noises, two-way: coverage", case=case, value=_covers(found), low=least)
            if s == 2:
                naive = _covers(estimate_prompts(pairs_NSK.mean(axis=1)))
                yield Rate(
                    what="not used, shared noises as if own: coverage", case=case, value=naive, high=90
                )


def family(
    sweeps: int,
    grids: tuple[tuple[int, int], ...] = ((8, 1), (12, 4), (24, 1)),
    prompts: tuple[int, ...] = (12, 24, 48),
) -> Iterator[Rate]:
    """Any wrong claim over a grid of trials × arms, by max-T; and what it finds beside Holm's correction."""
    rng = np.random.default_rng(5)
    for trials, arms in grids:
        for n in prompts:
            for rho in (0.0, 0.5, 0.9):
                wrong, per_arm, explored = [], [], []
                for _ in range(sweeps):
                    means_NK = _grid(rng, n, trials * arms, rho)
                    p_K = max_t_p(means_NK, patterns=PATTERNS // 2)
                    wrong.append(p_K.min() <= 0.05)
                    found = estimate_prompts(means_NK)
                    by_arm = [holm(found.p_K[arm::arms]).min() for arm in range(arms)]
                    per_arm.append(min(by_arm) <= 0.05)
                    word_K, _ = decide(replace(found, p_K=p_K), Rule(), higher_is_better=True)
                    explored.append(word_K[found.mean_K.argmax()] == "better")
                case = f"{trials} × {arms}, {n} prompts, correlation {rho:g}"
                yield Rate(what="max-T: any wrong claim", case=case, value=_percent(wrong), high=7.0)
                if arms > 1:
                    what = "exploratory: the best is 'better'"
                    yield Rate(what=what, case=case, value=_percent(explored), high=3.5)
                if arms > 1 and rho == 0:
                    what = "not used, Holm in each arm: any wrong claim"
                    yield Rate(what=what, case=case, value=_percent(per_arm), low=7.0)


def family_power(sweeps: int) -> Iterator[Rate]:
    """Points of average power that max-T has over Holm's correction of all comparisons."""
    rng = np.random.default_rng(6)
    for n, effect in ((12, 1.0), (24, 0.7), (48, 0.5)):
        gains = []
        for _ in range(sweeps):
            truth_K = np.where(rng.random(48) < 0.25, effect, 0.0)
            means_NK = _grid(rng, n, 48, 0.9) + truth_K
            true_K = truth_K > 0
            by_t = max_t_p(means_NK, patterns=PATTERNS // 2)[true_K] <= 0.05
            by_holm = holm(estimate_prompts(means_NK).p_K)[true_K] <= 0.05
            gains.append(by_t.mean() - by_holm.mean() if true_K.any() else 0.0)
        case = f"12 × 4, {n} prompts, correlation 0.9, a quarter at d = {effect:g}"
        value = 100 * float(np.mean(gains))
        yield Rate(what="max-T: points of power over Holm", case=case, value=value, low=10)


def verdicts(samples: int) -> Iterator[Rate]:
    """The four verdicts at a margin of 0.3 sd."""
    rng = np.random.default_rng(7)
    rule = Rule(margin=0.3)
    for n in (12, 24, 48, 96):
        for truth in (0.0, 0.3):
            found = estimate_prompts(rng.normal(size=(n, samples)) + truth)
            word_K, _ = decide(found, rule, higher_is_better=True)
            case = f"{n} prompts, true difference {truth:g} sd"
            equivalent, better = (_percent(word_K == word) for word in ("equivalent", "better"))
            if truth > 0:
                yield Rate(what="'equivalent' at the margin", case=case, value=equivalent, high=6.0)
            else:
                yield Rate(what="'better'", case=case, value=better, high=3.25)
            if truth == 0 and n == 96:
                yield Rate(what="'equivalent'", case=case, value=equivalent, low=75, high=85)


def power(samples: int) -> Iterator[Rate]:
    """Predicted power minus simulated power of 'better'; variance components from a simulated pilot."""
    rng = np.random.default_rng(8)
    unit = Components(prompt=1.0, noise=None, training=None, prompt_training=None, residual=None)
    for n in (12, 24, 48, 96):
        for effect in (0.3, 0.5, 0.8):
            found = estimate_prompts(rng.normal(size=(n, samples)) + effect)
            word_K, _ = decide(found, Rule(), higher_is_better=True)
            predicted = 100 * Design(prompts=n).power(effect, unit)
            case = f"{n} prompts, d = {effect:g}"
            value = predicted - _percent(word_K == "better")
            yield Rate(what="power: predicted − simulated, points", case=case, value=value, low=-5, high=5)
    truth = {"prompt": 0.3, "noise": 0.2, "training": 0.1, "residual": 0.4}
    shapes = {"prompt": (48, 1, 1), "noise": (48, 4, 1), "training": (1, 1, 4), "residual": (48, 4, 4)}
    pilots = []
    for _ in range(max(samples // 4, 200)):
        pilots.append(
            components_of(sum(rng.normal(size=shapes[name]) * truth[name] ** 0.5 for name in truth))
        )
    for name, variance in truth.items():
        value = 100 * float(np.mean([getattr(found, name) for found in pilots])) / variance
        case = f"{name}, mean of {len(pilots)} pilots of 48 × 4 × 4"
        yield Rate(what="variance: estimate in % of the truth", case=case, value=value, low=70, high=130)


def missing(samples: int) -> Iterator[Rate]:
    """'Better' where nothing is there and the arm's worst pairs are lost."""
    for n, lost in ((12, 1), (12, 2), (12, 5), (48, 10)):
        rng = np.random.default_rng([9, n, lost])
        shape = (n, 2, samples)
        common_NSK = rng.normal(size=(n, 1, samples)) + 0.5 * rng.normal(size=shape)
        arm, control = (
            common_NSK + 0.7 * rng.normal(size=shape) + 0.5 * rng.normal(size=(n, 1, samples)) for _ in "ac"
        )
        extremes = np.concatenate([arm, control]).reshape(-1, samples)
        low_K, high_K = extremes.min(axis=0), extremes.max(axis=0)
        cut_K = np.sort((arm - control).reshape(2 * n, samples), axis=0)[lost - 1]
        seen = np.where(arm - control <= cut_K, np.nan, arm)
        (low_arm, low_control), (high_arm, high_control) = fill_lost(
            seen, control, lowest=low_K, highest=high_K
        )
        kept = np.isfinite(seen)
        with np.errstate(invalid="ignore"):
            complete_NK = np.where(kept, seen - control, 0.0).sum(axis=1) / kept.sum(axis=1)
        found = estimate_prompts(complete_NK)
        losses = Losses(
            lowest=estimate_prompts((low_arm - low_control).mean(axis=1)),
            highest=estimate_prompts((high_arm - high_control).mean(axis=1)),
            share_K=np.full(samples, lost / (2 * n)),
        )
        case = f"the {lost} worst of {2 * n} pairs lost"
        word_K, _ = decide(found, Rule(), higher_is_better=True, losses=losses)
        what = "lost pairs filled in: 'better'"
        yield Rate(what=what, case=case, value=_percent(word_K == "better"), high=3.25)
        if lost > 1:
            word_K, _ = decide(found, Rule(), higher_is_better=True)
            value = _percent(word_K == "better")
            yield Rate(what="not used, complete pairs alone: 'better'", case=case, value=value, low=3.25)


def trainings(samples: int) -> Iterator[Rate]:
    """Coverage for a setting, from several trainings of it. τ: sd between trainings, a pair having 1."""
    rng = np.random.default_rng(10)
    for tau in (0.2, 0.3, 0.5):
        for n, k, least in ((24, 4, 93.0), (48, 4, 93.0), (48, 3, 91.0), (48, 2, 86.0)):
            cells_NTK = _two_factors(rng, (n, k, samples), (0.36, tau**2, 0.64), nested=False)
            value = _covers(estimate_crossed(cells_NTK, factor="training"))
            case = f"τ {tau:g}, {n} prompts × {k} trainings"
            yield Rate(what="setting, two-way: coverage", case=case, value=value, low=least, high=97)
    cells_NTK = _two_factors(rng, (48, 1, samples), (0.36, 0.09, 0.64), nested=False)
    naive = _covers(estimate_prompts(cells_NTK[:, 0]))
    what = "not used, one training for its setting: coverage"
    yield Rate(what=what, case="τ 0.3, 48 prompts", value=naive, high=90)


def ledger(samples: int) -> Iterator[Rate]:
    """Eight analyses of the same images (correlation 0.3) where nothing is there."""
    rng = np.random.default_rng(11)
    common_NK = rng.normal(size=(48, samples))
    words = []
    for _ in range(8):
        own_NK = rng.normal(size=(48, samples))
        found = estimate_prompts(np.sqrt(0.3) * common_NK + np.sqrt(0.7) * own_NK)
        words.append(decide(found, Rule(), higher_is_better=True)[0] == "better")
    case = "48 prompts, 8 analyses"
    yield Rate(
        what="first look alone is confirmatory: 'better'", case=case, value=_percent(words[0]), high=3.25
    )
    value = _percent(np.any(words, axis=0))
    yield Rate(what="not used, any look: 'better'", case=case, value=value, low=10)


def sequential(samples: int) -> Iterator[Rate]:
    """Three looks at 24, 48 and 96 prompts: claims where nothing is there, and images used at d = 0.5."""
    shapes: tuple[Shape, ...] = ("pocock", "obrien_fleming")
    for shape in shapes:
        looks = plan_looks(96, shape=shape)
        for kind, high in (("normal", 6.0), ("t3", 6.0), ("a few fall", 12.5)):
            means_NK = prompt_effects(kind, (96, samples), np.random.default_rng(12))
            value = _percent(np.isfinite(follow(means_NK, looks, patterns=PATTERNS).sign_K))
            yield Rate(what=f"three looks, {shape}: any claim", case=kind, value=value, high=high)
        course = follow(np.random.default_rng(13).normal(size=(96, samples)) + 0.5, looks, patterns=PATTERNS)
        used = 100 * float(course.prompts_K.mean()) / 96
        most = 50.0 if shape == "pocock" else 70.0
        yield Rate(what=f"three looks, {shape}: % of images used", case="d = 0.5", value=used, high=most)
        value = _percent(course.sign_K == 1)
        yield Rate(what=f"three looks, {shape}: power", case="d = 0.5", value=value, low=95)
    looks = plan_looks(96, margin=0.4)
    means_NK = np.random.default_rng(14).normal(size=(96, samples))
    value = _percent(follow(means_NK + 0.4, looks, patterns=PATTERNS).sign_K == 0)
    case = "96 prompts, true difference at the margin of 0.4 sd"
    yield Rate(what="three looks, pocock: 'equivalent'", case=case, value=value, high=6.0)
    used = 100 * float(follow(means_NK, looks, patterns=PATTERNS).prompts_K.mean()) / 96
    case = "no difference, margin 0.4 sd"
    yield Rate(what="three looks, pocock: % of images used", case=case, value=used, high=90)


SIMULATIONS: dict[str, Callable[[int], Iterator[Rate]]] = {
    "noises": noises,
    "coverage": coverage,
    "family": lambda samples: family(max(samples // 4, 100)),
    "family_power": lambda samples: family_power(max(samples // 20, 50)),
    "verdicts": verdicts,
    "power": power,
    "missing": missing,
    "trainings": trainings,
    "ledger": ledger,
    "sequential": sequential,
}


def estimate_prompts(means_NK: Floats) -> Estimates:
    """The estimates of the harness, with fewer patterns of signs than its default."""
    return inference.estimate_prompts(means_NK, patterns=PATTERNS)


def percentile(means_NK: Floats) -> tuple[Floats, Floats]:
    """Percentile bootstrap limits [K], for comparison."""
    low_K, high_K = np.quantile(_resampled(means_NK), [0.025, 0.975], axis=0)
    return low_K, high_K


def bca(means_NK: Floats) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated bootstrap limits [K] (Efron 1987), for comparison."""
    n, mean_K, boot_RK = len(means_NK), means_NK.mean(axis=0), np.sort(_resampled(means_NK), axis=0)
    bias_K = ndtri(np.clip((boot_RK < mean_K).mean(axis=0), 1e-4, 1 - 1e-4))
    jackknife_NK = (means_NK.sum(axis=0) - means_NK) / (n - 1)
    away_NK = mean_K - jackknife_NK
    bend_K = (away_NK**3).sum(axis=0) / (6 * (away_NK**2).sum(axis=0) ** 1.5)
    limits = []
    for tail in (0.025, 0.975):
        z_K = bias_K + ndtri(tail)
        level_K = ndtr(bias_K + z_K / (1 - bend_K * z_K))
        row_K = np.clip(np.rint(level_K * (len(boot_RK) - 1)).astype(int), 0, len(boot_RK) - 1)
        limits.append(boot_RK[row_K, np.arange(len(row_K))])
    return limits[0], limits[1]


def holm(p_K: Floats) -> Floats:
    """Holm's (1979) adjusted p, for comparison."""
    order = np.argsort(p_K, kind="stable")
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order] = np.minimum(np.maximum.accumulate(p_K[order] * np.arange(len(p_K), 0, -1)), 1)
    return adjusted_K


def table(rates: list[Rate]) -> str:
    """The rates as a table in Markdown."""
    lines = ["| what | case | simulated | bar |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.case} | {r.value:.1f}{'' if r.kept else ' ✗'} | {r.bar} |" for r in rates]
    return "\n".join(lines)


def summary(rates: list[Rate]) -> str:
    """The rates as a short table in Markdown: for each name and bar, lowest and highest of its cases."""
    groups: dict[tuple[str, str], list[Rate]] = {}
    for rate in rates:
        groups.setdefault((rate.what, rate.bar), []).append(rate)
    lines = ["| what | cases | simulated | bar |", "|---|---|---|---|"]
    for (what, bar), group in groups.items():
        values = [rate.value for rate in group]
        cases = group[0].case if len(group) == 1 else f"{len(group)}, {group[0].case} … {group[-1].case}"
        found = f"{values[0]:.1f}" if len(group) == 1 else f"{min(values):.1f} to {max(values):.1f}"
        lines.append(f"| {what} | {cases} | {found}{'' if all(r.kept for r in group) else ' ✗'} | {bar} |")
    return "\n".join(lines)


def main() -> None:
    """Run the simulations and print their table; exit status 1 where a bar is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4_000, help="simulated studies per line")
    parser.add_argument("--only", nargs="+", choices=SIMULATIONS, default=list(SIMULATIONS))
    parser.add_argument("--all", action="store_true", help="a line for each case")
    given = parser.parse_args()
    rates: list[Rate] = []
    for name in given.only:
        start = time.perf_counter()
        rates += SIMULATIONS[name](given.samples)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(table(rates) if given.all else summary(rates))
    broken = [rate for rate in rates if not rate.kept]
    print(f"{len(rates)} numbers, {len(broken)} beyond their bar")
    raise SystemExit(1 if broken else 0)


def _resampled(means_NK: Floats) -> Floats:
    n = len(means_NK)
    weights_RN = np.random.default_rng(15).multinomial(n, np.full(n, 1 / n), size=1_999) / n
    return np.asarray(weights_RN @ means_NK)


def _grid(rng: np.random.Generator, prompts: int, contrasts: int, rho: float) -> Floats:
    """Prompt means [N, K] of contrasts that share prompts and control."""
    common_N1, own_NK = rng.normal(size=(prompts, 1)), rng.normal(size=(prompts, contrasts))
    return np.asarray(np.sqrt(rho) * common_N1 + np.sqrt(1 - rho) * own_NK)


def _two_factors(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    variances: tuple[float, float, float],
    *,
    nested: bool,
) -> Floats:
    """Differences [N, S, K] from variances of prompt, factor (the prompts' own where nested), residual."""
    n, s, k = shape
    prompt, factor, residual = variances
    level = rng.normal(size=(n if nested else 1, s, k)) * factor**0.5
    return np.asarray(
        rng.normal(size=(n, 1, k)) * prompt**0.5 + level + rng.normal(size=shape) * residual**0.5
    )


def _covers(found: Estimates, truth: float = 0.0) -> float:
    low_K, high_K = found.interval(0.95)
    return _percent((low_K <= truth) & (high_K >= truth))


def _claims(found: Estimates) -> float:
    word_K, _ = decide(found, Rule(), higher_is_better=True)
    return _percent(word_K != "undecided")


def _percent(true: object) -> float:
    return 100 * float(np.mean(np.asarray(true, dtype=float)))


if __name__ == "__main__":
    main()
