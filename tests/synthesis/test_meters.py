from __future__ import annotations

import pytest

from adamllm_ray.synthesis.meters import COUNTERS, GAUGES, Meters
from adamllm_ray.synthesis.requests import Completion
from tests.scraping import DONE, a_replica, local_ray, names, samples


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
def test_figures_appear_on_rays_metrics_endpoint() -> None:
    wanted = {f"ray_adamllm_engine_{name}_total" for name in COUNTERS} | {
        f"ray_adamllm_engine_{name}" for name in GAUGES
    }
    with local_ray():
        replica = a_replica()
        found = samples(lambda found: names(found) >= wanted)
    assert replica
    ours = [sample for sample in found if sample.name in wanted]
    assert names(ours) == wanted
    assert {sample.labels["model"] for sample in ours} == {"judge"}
    values = {sample.name.removeprefix("ray_adamllm_engine_"): sample.value for sample in ours}
    assert values == {
        "rows_total": 1, "prompt_tokens_total": 10, "cached_tokens_total": 4, "generated_tokens_total": 3,
        "slots": 8, "in_flight": 1, "kv_use": 0.5, "prefix_hit_rate": 0.4,
    }  # fmt: skip
