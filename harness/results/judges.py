"""Do judges that see the images through other networks agree with the primary metric?

Metrics on one encoder err together, so they are one judge.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.results.contrast import Contrast
from harness.results.format import interval, listed, metric_name, signed

if TYPE_CHECKING:
    from harness.results.study import Study


def network(metric: Mapping[str, Any]) -> str:
    """What a metric of `sweep.json` sees the images through: an encoder, a model or a command of its own."""
    if metric.get("encoder"):
        return str(metric["encoder"])
    return str(metric["name"] if metric["kind"] == "command" else metric["kind"])


def second_opinions(study: "Study", main: Contrast) -> str:
    """What the other judges say of the same contrast, in one sentence.

    Those are the metrics with a better direction whose network is another than the primary's.
    """
    metrics = {metric["name"]: metric for metric in study.sweep["metrics"]}
    own = network(metrics[study.primary])
    said: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        c = study.contrast(main.trial_id, arm=main.arm, control=main.control, metric=name, split=main.split)
        if network(metric) != own and c is not None and c.higher_is_better is not None:
            said.setdefault(_opinion(c, main), []).append(_numbers(study, c))
    if not said:
        return f"No second judge: no other metric with a better direction has a network other than {own}."
    parts = [f"{opinion}: {listed(judges)}" for opinion, judges in said.items()]
    return f"Judges with another network than {own}: {'; '.join(parts)}."


def _opinion(c: Contrast, main: Contrast) -> str:
    """In words that do not depend on the primary's own finding where that shows nothing."""
    if c.difference is None:
        return "no numbers"
    if c.finding not in ("better", "worse"):
        return "no difference shown"
    if main.finding not in ("better", "worse"):
        return f"{c.finding} than {c.control}"
    return "agree" if c.finding == main.finding else "the opposite"


def _numbers(study: "Study", c: Contrast) -> str:
    name, decimals = metric_name(c.metric), study.decimals[c.metric]
    if c.difference is None:
        return name
    return f"{name} {signed(c.difference, decimals)} {interval(c.low, c.high, decimals)}"
