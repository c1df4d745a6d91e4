from __future__ import annotations

import contextlib
import time
import urllib.request

import pytest

from adamllm_ray.synthesis.meters import COUNTERS, GAUGES, Meters
from adamllm_ray.synthesis.requests import Completion

DONE = Completion("a", [1, 2, 3], prompt_tokens=10, cached_tokens=4)


def test_totals_without_ray() -> None:
    meters = Meters("m")
    for _ in range(3):
        meters.started()
    meters.finished(DONE)
    meters.finished(Completion("b", error="refused"))
    meters.kv_use(0.5)
    assert meters.totals == {
        "rows": 2, "errors": 1, "prompt_tokens": 10, "cached_tokens": 4, "generated_tokens": 3, "in_flight": 1,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_figures_appear_on_rays_metrics_endpoint(tmp_path_factory: pytest.TempPathFactory) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": __file__.partition("/tests/")[0]}},
    )
    try:
        replica = ray.remote(num_cpus=0)(_Replica).remote()
        ray.get(replica.work.remote())
        port = ray.nodes()[0]["MetricsExportPort"]
        wanted = {f"ray_adamllm_engine_{name}" for name in (*COUNTERS, *GAUGES)}
        page = ""
        for _ in range(120):  # Ray's agent collects every few seconds
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            if all(name in page for name in wanted):
                break
            time.sleep(1)
        lines = [line for line in page.splitlines() if line.startswith("ray_adamllm_engine_")]
        assert {line.partition("{")[0].removesuffix("_total") for line in lines} >= wanted
        assert any("kv_use" in line and 'model="judge"' in line and line.endswith(" 0.5") for line in lines)
        assert any("prefix_hit_rate" in line and line.endswith(" 0.4") for line in lines)
    finally:
        ray.shutdown()


class _Replica:
    """An actor with the meters of an engine."""

    def work(self) -> None:
        self.meters = Meters("judge")
        self.meters.started()
        self.meters.finished(DONE)
        self.meters.started()
        self.meters.kv_use(0.5)
