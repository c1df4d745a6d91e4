from __future__ import annotations

import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.errors import ConfigError
from adamllm_ray.synthesis.pools import concurrent_calls, cpu_share

CPU = EngineSection(cpus_per_replica=1.0)
GPU = EngineSection(gpus_per_replica=2, replicas=4)


def test_large_cluster_gives_what_was_asked() -> None:
    assert cpu_share({"synthesis": (CPU, 64), "judge": (CPU, 64)}, {"CPU": 16}) == 1.0


def test_small_machine_shares() -> None:
    share = cpu_share({"synthesis": (CPU, 64), "judge": (CPU, 64)}, {"CPU": 4})
    assert 0.5 < share < 1
    assert 2 * share + 2 < 4  # Ray Data's own two CPUs are left


@pytest.mark.parametrize(
    ("pools", "capacity", "words"),
    [
        ({"synthesis": (GPU, 64)}, {"CPU": 64, "GPU": 4}, "need 8 GPUs"),
        ({"synthesis": (CPU, 64), "judge": (EngineSection(replicas=9), 64)}, {"CPU": 8}, "need 10 CPUs"),
        ({"judge": (CPU, 64)}, {"CPU": 2}, "at least 3"),
    ],
)
def test_too_small_a_cluster_is_refused_at_once(pools: object, capacity: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cpu_share(pools, capacity)  # type: ignore[arg-type]


def test_gpu_pools_do_not_count_as_cpus() -> None:
    assert cpu_share({"synthesis": (GPU, 64), "judge": (GPU, 64)}, {"CPU": 4, "GPU": 16}) == 1.0


def test_enough_blocks_to_keep_a_replica_full() -> None:
    assert concurrent_calls(EngineSection(max_num_seqs=64), 64) == 2
    assert concurrent_calls(EngineSection(max_num_seqs=1024), 8) == 16
