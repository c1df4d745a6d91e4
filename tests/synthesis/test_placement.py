from __future__ import annotations

import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.ray_runtime import start_local
from adamllm_ray.synthesis.placement import PlacedInGroup, replica_resources


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"num_cpus": 1.5}),
        ({"gpus_per_replica": 0.5, "gpu_memory_utilization": 0.4}, {"num_gpus": 0.5}),
        ({"gpus_per_replica": 4}, {"num_gpus": 4}),
        (
            {"gpus_per_replica": 4, "pipeline_parallel": 2},
            {"num_gpus": 0, "num_cpus": 0, "ray_remote_args_fn": PlacedInGroup(({"GPU": 1.0, "CPU": 1.0},) * 4)},
        ),
    ],
)
def test_what_ray_is_asked_for(settings: dict[str, float], expected: dict[str, object]) -> None:
    found = replica_resources(EngineSection.model_validate(settings)).map_batches_arguments(num_cpus=1.5)
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpus_per_replica": 1.5}, r"gpus_per_replica \(1.5\) must be a whole number, or a fraction below 1"),
        ({"gpus_per_replica": 0.5}, r"gpu_memory_utilization \(0.9\) is more .* set it to 0.45"),
        ({"gpus_per_replica": 3, "pipeline_parallel": 2}, r"pipeline_parallel \(2\) must divide .* to 4"),
        ({"gpus_per_replica": 0.5, "pipeline_parallel": 2}, r"pipeline_parallel \(2\) must divide"),
        ({"pipeline_parallel": 2}, r"pipeline_parallel \(2\) must divide gpus_per_replica \(0\).* to 2"),
    ],
)
def test_impossible_placements_name_field_and_fix(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineSection.model_validate(settings)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_actor_and_what_it_starts_are_in_one_group_of_all_the_gpus() -> None:
    """With GPUs that only Ray's book-keeping has: a pipeline-parallel replica of Ray Data in its placement group."""
    import ray

    start_local(num_cpus=6, num_gpus=4, log_to_driver=False)
    try:
        need = replica_resources(EngineSection(gpus_per_replica=4, pipeline_parallel=2))
        graph = ray.data.range(2).map_batches(
            _Where, batch_size=1, compute=ray.data.ActorPoolStrategy(size=1), **need.map_batches_arguments()
        )
        assert {(row["bundles"], row["worker_gpus"], row["same"]) for row in graph.take_all()} == {(4, 1, True)}
    finally:
        ray.shutdown()


class _Where:
    """Says which placement group this actor and a worker started by it are in, as vLLM's executor would see it."""

    def __call__(self, batch: dict[str, object]) -> dict[str, list[object]]:
        import ray

        group = ray.util.get_current_placement_group()
        worker = ray.remote(num_gpus=1)(_group_of_worker)
        name, gpus = ray.get(worker.remote())
        return {"bundles": [len(group.bundle_specs)], "worker_gpus": [gpus], "same": [name == group.id.hex()]}


def _group_of_worker() -> tuple[str, int]:
    import ray

    return ray.util.get_current_placement_group().id.hex(), len(ray.get_gpu_ids())
