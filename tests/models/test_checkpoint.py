"""What counts as a usable model folder, and that an export is the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adamllm_ray.errors import ModelError
from adamllm_ray.models.checkpoint import export_model, load_vlm, model_fingerprint, resolve_model


@pytest.fixture
def copy(tiny_vlm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vlm, tmp_path / "vlm"))


def test_folder_resolves_to_itself(tiny_vlm: Path) -> None:
    assert resolve_model(str(tiny_vlm)) == str(tiny_vlm.resolve())


def test_missing_folder_and_unknown_pocket_model() -> None:
    with pytest.raises(ModelError, match=r"config\.json and \*\.safetensors"):
        resolve_model("/no/such/folder")
    with pytest.raises(ModelError, match="pocket model"):
        resolve_model("pocket:nonsense")


def test_folder_that_brings_code_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="auto_map"):
        load_vlm(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safe_serialization"):
        load_vlm(copy)


def test_language_model_is_not_a_vlm(tiny_judge: Path) -> None:
    with pytest.raises(ModelError, match="takes no images"):
        load_vlm(tiny_judge)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_folder_with_a_part_missing(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match="no image processor" if "processor" in name else "no config"):
        load_vlm(copy)


def test_damaged_config_and_weights(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_vlm(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_vlm(copy)


def test_export_is_the_same_model(tiny_vlm: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model, processor = load_vlm(tiny_vlm, "float32")
    again, _ = load_vlm(export_model(model, processor, tmp_path / "out"), "float32")
    ids = torch.tensor([[1, 20, 21, 22]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    keys = load_file(tmp_path / "out" / "model.safetensors").keys()
    towers = [key for key in keys if "vision_tower." in key]
    assert towers
    assert all("vision_tower.vision_model." in key for key in towers)  # as vLLM wants them


def test_fingerprint_sees_every_part(copy: Path, tiny_vlm: Path) -> None:
    before = model_fingerprint(tiny_vlm)
    assert model_fingerprint(copy) == before
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert model_fingerprint(copy) != before
