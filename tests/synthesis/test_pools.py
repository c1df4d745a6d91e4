from __future__ import annotations

import math

import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.errors import ConfigError
from adamllm_ray.synthesis.pools import KUBERAY_AUTOSCALER, LIMITS, Pool, _arguments, _told, cpu_share

CPU = EngineSection(cpus_per_replica=1.0)
GPU = EngineSection(gpus_per_replica=2, replicas=4)


def test_large_cluster_gives_what_was_asked() -> None:
    assert cpu_share({"synthesis": Pool(CPU, 64), "judge": Pool(CPU, 64)}, {"CPU": 16}) == 1.0


def test_small_machine_shares() -> None:
    share = cpu_share({"synthesis": Pool(CPU, 64), "judge": Pool(CPU, 64)}, {"CPU": 4})
    assert 0.5 < share < 1
    assert 2 * share + 2 < 4  # Ray Data's own two CPUs are left


@pytest.mark.parametrize(
    ("pools", "capacity", "words"),
    [
        ({"synthesis": Pool(GPU, 64)}, {"CPU": 64, "GPU": 4}, "need 8 GPUs"),
        ({"synthesis": Pool(CPU, 64), "judge": Pool(EngineSection(replicas=9), 64)}, {"CPU": 8}, "need 10 CPUs"),
        ({"judge": Pool(CPU, 64)}, {"CPU": 2}, "at least 3"),
    ],
)
def test_too_small_a_cluster_is_refused_at_once(pools: object, capacity: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cpu_share(pools, capacity)  # type: ignore[arg-type]


def test_gpu_pools_do_not_count_as_cpus() -> None:
    assert cpu_share({"synthesis": Pool(GPU, 64), "judge": Pool(GPU, 64)}, {"CPU": 4, "GPU": 16}) == 1.0


def test_enough_blocks_to_keep_a_replica_full() -> None:
    assert Pool(EngineSection(max_num_seqs=64), 64).calls == 2
    assert Pool(EngineSection(max_num_seqs=256), 64, unevenness=4.0).calls == 17
    assert Pool(EngineSection(max_num_seqs=1024), 8).calls == 64  # threads of a process


def test_a_growing_pool_needs_room_for_its_least_only() -> None:
    growing = EngineSection(gpus_per_replica=1, replicas=64, min_replicas=2)
    assert cpu_share({"synthesis": Pool(growing, 64)}, {"CPU": 8, "GPU": 2}) == 1.0
    with pytest.raises(ConfigError, match=r"need 2 GPUs .*engine\.min_replicas"):
        cpu_share({"synthesis": Pool(growing, 64)}, {"CPU": 8, "GPU": 1})


def test_a_growing_pool_is_handed_enough_to_grow() -> None:
    """Ray Data adds a replica when blocks in flight reach 1.75 of what runs at once, so less would never grow."""
    fixed = _arguments(Pool(EngineSection(replicas=4), 64), 1.0)["compute"]
    assert (fixed.min_size, fixed.max_size, fixed.initial_size) == (4, 4, 4)
    growing = _arguments(Pool(EngineSection(replicas=4, min_replicas=1), 64), 1.0)["compute"]
    assert (growing.min_size, growing.max_size, growing.initial_size) == (1, 4, 1)
    assert growing.max_tasks_in_flight_per_actor >= 1.75 * growing.max_concurrent_calls_per_actor


def test_a_batch_that_kills_its_replica_is_not_tried_for_ever() -> None:
    assert _arguments(Pool(EngineSection(max_retries=2), 64), 1.0)["max_task_retries"] == 2


def test_a_pool_of_placement_groups_does_not_grow() -> None:
    settings = EngineSection(gpus_per_replica=4, pipeline_parallel=2, replicas=2, min_replicas=1)
    with pytest.raises(ConfigError, match=r"engine\.pipeline_parallel"):
        _arguments(Pool(settings, 64), 1.0)
    assert "ray_remote_args_fn" in _arguments(Pool(settings.model_copy(update={"min_replicas": None}), 64), 1.0)


def test_a_cluster_that_starts_empty_is_as_large_as_it_may_grow() -> None:
    """KubeRay starts a job with a head of 0 CPUs, and Ray does not know what its autoscaler may add."""
    told = _told({LIMITS: '{"CPU": 128, "GPU": 8}', KUBERAY_AUTOSCALER: "true"})
    assert told == {"CPU": 128.0, "GPU": 8.0}
    assert cpu_share({"synthesis": Pool(GPU, 64)}, told) == 1.0
    with pytest.raises(ConfigError, match="need 16 GPUs"):
        cpu_share({"synthesis": Pool(GPU, 64), "judge": Pool(GPU, 64)}, told)


def test_an_autoscaler_that_tells_no_limits_is_trusted_with_any_size() -> None:
    told = _told({KUBERAY_AUTOSCALER: "true"})
    assert told == {"CPU": math.inf, "GPU": math.inf}
    assert cpu_share({"synthesis": Pool(GPU, 64), "judge": Pool(CPU, 64)}, told) == 1.0
    assert _told({}) == {}


@pytest.mark.parametrize("text", ["64", "[]x", '{"CPU": "many"}', '{"CPU": null}'])
def test_limits_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=LIMITS):
        _told({LIMITS: text})


def test_writes_have_a_bound_where_the_cluster_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from adamllm_ray.synthesis import pools

    for cpus, writes in ((4.0, 2), (128.0, 32), (math.inf, 16)):
        monkeypatch.setattr(pools, "cluster_capacity", lambda cpus=cpus: {"CPU": cpus})
        assert pools.write_tasks() == writes
