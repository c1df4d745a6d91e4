"""What Prometheus would read from a Ray that runs here: the page of a node's metrics agent, taken apart."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PATIENCE_S = 120  # Ray's agent collects every few seconds, and starts late on a busy machine


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of one CPU, whose workers can import the package and the tests."""
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
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
