"""What Prometheus would read from a Ray that runs here: the page of a node's metrics agent, taken apart."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from adamllm_ray.ray_runtime import start_local
from adamllm_ray.synthesis.meters import Meters
from adamllm_ray.synthesis.requests import Completion

PATIENCE_S = 120  # Ray's agent collects every few seconds, and starts late on a busy machine
DONE = Completion("a", [1, 2, 3], prompt_tokens=10, cached_tokens=4)


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of one CPU, whose workers can import the package and the tests."""
    start_local(
        num_cpus=1,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": __file__.partition("/tests/")[0]}},
    )
    try:
        yield
    finally:
        ray.shutdown()


def samples(until: Callable[[list[Sample]], bool]) -> list[Sample]:
    """All samples of the node's page, as soon as ``until`` is content with them, or when patience ends."""
    port, found = ray.nodes()[0]["MetricsExportPort"], []
    for _ in range(PATIENCE_S):
        with contextlib.suppress(OSError):
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        if until(found):
            break
        time.sleep(1)
    return found


def names(found: list[Sample]) -> set[str]:
    """Names of the series, as a query has to write them."""
    return {sample.name for sample in found}


class _Replica:
    """An actor with the meters of an engine."""

    def work(self) -> None:
        self.meters = Meters("judge")
        self.meters.ready(8)
        self.meters.started()
        self.meters.finished(DONE)
        self.meters.started()
        self.meters.kv_use(0.5)


def a_replica() -> Any:
    """A replica named "judge" with 8 slots: one request done, another inside. It lives as long as the handle."""
    replica = ray.remote(num_cpus=0)(_Replica).remote()
    ray.get(replica.work.remote())
    return replica
