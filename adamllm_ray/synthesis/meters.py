"""What a replica has done so far, as totals in its process and as metrics on Ray's Prometheus endpoint.

    meters = Meters(model="judge")
    meters.finished(completion)

Inside Ray every figure appears on the node's metrics endpoint with a ``ray_`` prefix and the label ``model``:
``adamllm_engine_rows`` (label ``outcome``: ok or error), ``..._prompt_tokens``, ``..._cached_tokens``,
``..._generated_tokens`` (Ray adds ``_total`` to these four), ``..._slots``, ``..._in_flight``, ``..._kv_use`` (share of
the KV cache), ``..._prefix_hit_rate`` (share of all prompt tokens so far that came from the prefix cache). Without Ray
only the totals are kept.
"""

from __future__ import annotations

from typing import Any

from adamllm_ray.gauges import PREFIX, in_ray
from adamllm_ray.synthesis.requests import Completion

COUNTERS = {
    "rows": "Requests that came back.",
    "prompt_tokens": "Prompt tokens, image tokens included.",
    "cached_tokens": "Prompt tokens that came from the prefix cache.",
    "generated_tokens": "Tokens that the model wrote.",
}
GAUGES = {
    "slots": "Requests that the engine works on at a time. There from the moment it is loaded: one series per replica.",
    "in_flight": "Requests inside the engine.",
    "kv_use": "Share of the KV cache in use.",
    "prefix_hit_rate": "Share of all prompt tokens so far that came from the prefix cache.",
}


class Meters:
    """Counts of one replica; `totals` holds them by name, errors apart."""

    def __init__(self, model: str) -> None:
        self.totals: dict[str, int] = dict.fromkeys([*COUNTERS, "errors", "in_flight"], 0)
        self._metrics = _ray_metrics(model)

    def ready(self, slots: int) -> None:
        """The engine is loaded."""
        self._set("slots", slots)
        self._set("in_flight", self.totals["in_flight"])

    def started(self) -> None:
        """A request went into the engine."""
        self._in_flight(1)

    def finished(self, completion: Completion) -> None:
        """A request came back, with tokens or with an error."""
        self._in_flight(-1)
        self._add("rows", 1, outcome="ok" if completion.error is None else "error")
        if completion.error is not None:
            self.totals["errors"] += 1
            return
        self._add("prompt_tokens", completion.prompt_tokens)
        self._add("cached_tokens", completion.cached_tokens)
        self._add("generated_tokens", completion.generated_tokens)
        self._set("prefix_hit_rate", self.totals["cached_tokens"] / max(1, self.totals["prompt_tokens"]))

    def kv_use(self, share: float) -> None:
        """The share of the KV cache that is in use now."""
        self._set("kv_use", share)

    def _in_flight(self, change: int) -> None:
        self.totals["in_flight"] += change
        self._set("in_flight", self.totals["in_flight"])

    def _add(self, name: str, amount: int, **tags: str) -> None:
        self.totals[name] += amount
        if self._metrics and amount:
            self._metrics[name].inc(amount, tags=tags)

    def _set(self, name: str, value: float) -> None:
        if self._metrics:
            self._metrics[name].set(value)


def _ray_metrics(model: str) -> dict[str, Any]:
    if not in_ray():
        return {}
    from ray.util import metrics

    made: dict[str, Any] = {}
    for name, words in COUNTERS.items():
        keys = ("model", "outcome") if name == "rows" else ("model",)
        made[name] = metrics.Counter(f"{PREFIX}engine_{name}", words, keys)
    for name, words in GAUGES.items():
        made[name] = metrics.Gauge(f"{PREFIX}engine_{name}", words, ("model",))
    for metric in made.values():
        metric.set_default_tags({"model": model})
    return made
