"""How many requests each combination has had, in vLLM's own Prometheus metrics."""

from functools import cache
from typing import Any

from engrain.plugins.vllm.combination import Combination

# Each label is a time series that is never forgotten; requests make up the combinations.
_MOST_LABELS = 100
_labels: set[str] = set()


def count(combination: Combination | None) -> None:
    """Count a request by the names of the vectors that steer it; past a hundred combinations, as ``other``."""
    label = "none" if combination is None else combination.names
    if label not in _labels and len(_labels) >= _MOST_LABELS:
        label = "other"
    _labels.add(label)
    _requests().labels(vectors=label).inc()


@cache
def _requests() -> Any:
    from prometheus_client import Counter

    return Counter("engrain_requests", "Requests by the names of the vectors that steer them.", ["vectors"])
