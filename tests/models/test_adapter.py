from __future__ import annotations

import json
from pathlib import Path

import pytest

from adamllm_ray.errors import ModelError
from adamllm_ray.models.adapter import resolve_adapter


def adapter(folder: Path, config: dict[str, object], weights: str = "adapter_model.safetensors") -> str:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(b"")
    return str(folder)


def test_rank_is_the_largest_of_all_modules(tmp_path: Path) -> None:
    found = resolve_adapter(adapter(tmp_path, {"r": 8, "rank_pattern": {"q_proj": 32}}))
    assert (found.folder, found.rank) == (str(tmp_path), 32)


@pytest.mark.parametrize("config", [{}, {"r": 0}, {"r": "8"}, {"r": 8, "rank_pattern": {"q_proj": None}}])
def test_adapter_without_a_rank(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="'r' must be a positive whole number"):
        resolve_adapter(adapter(tmp_path, config))


def test_pickled_weights_and_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        resolve_adapter(str(tmp_path))
    with pytest.raises(ModelError, match="safe_serialization"):
        resolve_adapter(adapter(tmp_path, {"r": 8}, "adapter_model.bin"))
    with pytest.raises(ModelError, match=r"with adapter_config\.json and adapter_model\.safetensors"):
        resolve_adapter("/no/such/adapter")
