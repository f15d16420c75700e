"""What a sweep's judges do not see: damage that was put on generated images and did not lower the score."""

from typing import TYPE_CHECKING

from harness.metrics.weights import unseen_damages
from harness.results.contrast import text
from harness.results.format import listed, metric_name

if TYPE_CHECKING:
    from harness.results import Results


def blind_spots(results: "Results") -> list[str]:
    """A sentence per metric that was measured (`benchmarks.known_directions`), and of the primary always."""
    primary = results.sweep["analysis"]["primary"]
    weights = results.scores.drop_duplicates("metric").set_index("metric")["weights_hash"]
    found = []
    for metric in results.sweep["metrics"]:
        name = metric["name"]
        unseen = unseen_damages(text(weights.get(name)))
        if unseen:
            named = [f"{damage.replace('_', ' ')} ({why})" for damage, why in unseen.items()]
            found.append(f"{metric_name(name)} does not see all damage of generated images: {listed(named)}.")
        elif unseen is None and name == primary:
            found.append(f"It was not measured which damage {metric_name(name)} does not see.")
    return found
