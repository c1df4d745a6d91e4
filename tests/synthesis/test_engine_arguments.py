from __future__ import annotations

import json
from pathlib import Path

import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.errors import ConfigError
from adamllm_ray.models.adapter import Adapter
from adamllm_ray.synthesis.engine_arguments import FORBIDDEN, GUARDED, OWN_FIELDS, engine_arguments, engine_identity

pytestmark = pytest.mark.guards


def arguments(settings: EngineSection, **more: object) -> dict[str, object]:
    return engine_arguments("m", settings, images=False, seed=0, **more)  # type: ignore[arg-type]


def test_guards_hold_and_everything_else_is_passed_on() -> None:
    found = engine_arguments("m", EngineSection(extra={"block_size": 32}), images=True, seed=3)
    assert GUARDED.items() <= found.items()
    assert found["trust_remote_code"] is False
    assert found["block_size"] == 32
    assert found["limit_mm_per_prompt"] == {"image": 1}


@pytest.mark.parametrize("name", [*GUARDED, *sorted(FORBIDDEN), *OWN_FIELDS])
def test_code_network_and_what_ray_must_know_cannot_be_set(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        arguments(EngineSection(extra={name: 2}))


@pytest.mark.parametrize(
    ("extra", "place"),
    [
        ({"reasoning_parser_plugin": "/tmp/evil.py"}, "reasoning_parser_plugin"),
        ({"io_processor_plugin": "evil"}, "io_processor_plugin"),
        ({"distributed_executor_backend": "evil.Executor"}, "distributed_executor_backend"),
        ({"compilation_config": {"backend": "evil.backend"}}, "compilation_config.backend"),
        ({"speculative_config": {"method": "custom_class", "model": "evil.Proposer"}}, "speculative_config.method"),
        ({"kv_transfer_config": {"kv_connector_module_path": "evil"}}, "kv_connector_module_path"),
        ({"kv_transfer_config": {"kv_connector_extra_config": {"spec_module_path": "evil"}}}, "spec_module_path"),
        ({"x": [{"encoder_cache_manager_cls": "evil.Cache"}]}, "x.0.encoder_cache_manager_cls"),
    ],
)
def test_nothing_imports_what_a_configuration_names(extra: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match=f"{place} names code"):
        arguments(EngineSection(extra=extra))


def test_words_for_backends_are_let_through() -> None:
    extra = {
        "distributed_executor_backend": "mp",
        "compilation_config": {"backend": "inductor"},
        "reasoning_parser_plugin": "",
    }
    assert extra.items() <= arguments(EngineSection(extra=extra)).items()


def test_gpu_replica_is_left_to_vllm() -> None:
    found = arguments(EngineSection(gpus_per_replica=4, quantization="fp8"))
    assert found["tensor_parallel_size"] == 4
    assert found["quantization"] == "fp8"
    assert found["dtype"] == "auto"
    assert not {"kv_cache_memory_bytes", "distributed_executor_backend", "pipeline_parallel_size"} & found.keys()


def test_pipeline_stages_are_started_by_ray() -> None:
    found = arguments(EngineSection(gpus_per_replica=8, pipeline_parallel=2))
    assert found["tensor_parallel_size"] == 4
    assert found["pipeline_parallel_size"] == 2
    assert found["distributed_executor_backend"] == "ray"


def test_a_shared_gpu_is_one_gpu_for_vllm() -> None:
    found = arguments(EngineSection(gpus_per_replica=0.5, gpu_memory_utilization=0.45))
    assert found["tensor_parallel_size"] == 1
    assert found["gpu_memory_utilization"] == 0.45


def test_adapter_gets_the_next_rank_that_has_kernels() -> None:
    assert arguments(EngineSection(), adapter=Adapter("/a", 12))["max_lora_rank"] == 16
    with pytest.raises(ConfigError, match="rank 513"):
        arguments(EngineSection(), adapter=Adapter("/a", 513))


def test_identity_has_what_changes_rows_and_nothing_else(tmp_path: Path) -> None:
    plain = engine_identity(EngineSection())
    assert plain.keys() == {"max_model_len", "dtype", "extra"}  # runs made before the newer fields keep their folders
    assert engine_identity(EngineSection(replicas=7, gpus_per_replica=2, max_num_seqs=3)) == plain
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    first = engine_identity(EngineSection(lora=str(tmp_path)))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert engine_identity(EngineSection(lora=str(tmp_path))) != first
    assert engine_identity(EngineSection(quantization="fp8")) != plain
