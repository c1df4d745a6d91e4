"""Manifests read back as they were written, and the version of code is that of its source."""

import sys
from pathlib import Path

import pytest

from adamllm_ray.data import manifest as manifest_module
from adamllm_ray.data.manifest import Manifest, code_version, installed_versions
from adamllm_ray.errors import StorageError


def test_round_trip() -> None:
    files = [{"path": "data/part-0.parquet", "bytes": 3, "sha256": "0" * 64}]
    manifest = Manifest("ingest", {"x": 1}, 3, 1, 1, 1, {"ok": 1}, files, 0.5, versions=installed_versions())
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("text", ['{"stage": "ingest"', '{"unknown": 1}', "", "[]"])
def test_damaged_manifest(text: str) -> None:
    with pytest.raises(StorageError, match="damaged"):
        Manifest.from_json(text)


def test_code_version_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_stage.py").write_text("x = 1\n")
    first = code_version("some_stage")
    assert first == code_version("some_stage") != code_version("some_stage", manifest_module)
    (tmp_path / "some_stage.py").write_text("x = 2\n")
    assert code_version("some_stage") != first
    assert "some_stage" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        code_version("no_such_stage")
