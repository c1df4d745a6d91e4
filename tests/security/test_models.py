"""A model folder brings no code (reliability 57): refused before anything of it is loaded, wherever it names some."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.errors import ModelError
from adamllm_ray.models.adapter import resolve_adapter
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.models.fetch import PATTERNS
from tests.hostile import Bomb

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]
AUTO_MAP = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoProcessor": "evil.Processor"}}
FILES = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model, with code beside it that leaves a mark when it runs."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llava_next"}')
    (made / "model.safetensors").write_bytes(b"")
    (made / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'marker')!r}).touch()\n")
    return made


def test_without_it_the_folder_would_do(folder: Path) -> None:
    assert resolve_model(str(folder)) == str(folder)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("file", FILES)
def test_code_of_its_own(folder: Path, file: str, nested: bool) -> None:
    tree: dict[str, Any] = {"text_config": {"x": [AUTO_MAP]}} if nested else AUTO_MAP
    (folder / file).write_text(json.dumps({"model_type": "llava_next", **tree}))
    with pytest.raises(ModelError, match=f"auto_map in {file}"):
        resolve_model(str(folder))
    assert "evil" not in sys.modules
    assert not (folder.parent / "marker").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_pickled_weights(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(folder.parent / "marker")))
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(ModelError, match="Pickled weights"):
        resolve_model(str(folder))
    assert not (folder.parent / "marker").exists()


def test_pickled_weights_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(ModelError, match="Pickled weights"):
        resolve_adapter(str(tmp_path))
    assert not (tmp_path / "marker").exists()


def test_nothing_that_carries_code_is_fetched() -> None:
    assert not any(pattern.endswith((".py", ".bin", ".pt", ".pkl", "*")) for pattern in PATTERNS)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "\xff"])
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_text(text, "latin-1")
    with pytest.raises(ModelError, match="tokenizer_config"):
        resolve_model(str(folder))
