"""Names from outside lead nowhere (reliability 52): in records, in a bucket, in a manifest, in a model's name.

A secret lies beside the source, and links lead to it. After an ingest of every way out, no byte of it is in the run
folder, nothing outside of source and run was opened, and nothing outside of the run was written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import S3Section, parse_config
from adamllm_ray.data import s3, storage, transfer
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.sources import ImageFolder
from adamllm_ray.data.storage import Location
from adamllm_ray.errors import ConfigError, ImageRefused, ModelError, StorageError
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.training.snapshots import COMPLETE, examine, sign_files, write_complete
from tests import hostile
from tests.security.test_addresses import write_source

pytestmark = [pytest.mark.timeout(120), pytest.mark.guards]
NAMES = ["../x", "a/../../x", "/etc/x", "..", "a/..", "", "a\0b"]  # of a file "below" a folder


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with images, and the secret beside them."""
    images = tmp_path / "images"
    for folder in (images / "sub", tmp_path / "images-other"):
        folder.mkdir(parents=True)
    secret = hostile.encode(hostile.picture(seed=7))
    for place in (tmp_path, tmp_path / "images-other"):
        (place / "secret.png").write_bytes(secret)
    (images / "good.png").write_bytes(hostile.good_png(1))
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "way").symlink_to(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["sharegpt", "parquet", "huggingface"])
def test_an_ingest_of_every_way_out(house: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in hostile.ways_out(house) if kind == "sharegpt" or "\ud800" not in name]
    data = write_source(house / "source", kind, [*names, "good.png"])
    section = data.model_copy(update={"image_folder": str(house / "images"), "max_failed_share": 1.0})
    config = parse_config({"run": {"output": str(house / "run")}, "data": section.model_dump(mode="json")})
    monkeypatch.setenv("HOME", str(house))
    opened: list[str] = []
    real = os.open

    def spy(path: Any, *rest: Any, **options: Any) -> int:
        opened.append(os.path.realpath(path))
        return real(path, *rest, **options)

    before = {path for path in house.rglob("*") if "run" not in path.parts}
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", spy)
        manifest = ingest(config, RunFolder(config.run.output))
    assert manifest.verdicts == {"image_missing": len(names), "ok": 1}
    assert opened
    assert all(path.startswith((f"{house}/images/", f"{house}/run")) for path in opened)
    assert {path for path in house.rglob("*") if "run" not in path.parts} == before
    secret = (house / "secret.png").read_bytes()
    assert not any(secret in path.read_bytes() for path in (house / "run").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/x.png", "s3://runs/images/../x.png", "s3://other/x.png"]
)
def test_a_name_does_not_lead_out_of_a_prefix(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store takes ``..`` for a part of a key like any other; what stands before one may not."""
    folder = ImageFolder(str(tmp_path), 1000)
    folder._place = Location(None, "runs/images", "s3://runs/images", False)  # type: ignore[arg-type]
    asked: list[str] = []
    monkeypatch.setattr(s3, "fetch", lambda path, *_: asked.append(path) or b"")
    with pytest.raises(ImageRefused):
        folder.read(name)
    assert asked == []
    assert folder.read("s3://runs/images/a.png") == folder.read("a.png") == b""
    assert asked == ["runs/images/a.png"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_key_of_a_bucket_does_not_lead_out_of_a_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket may have such keys: nothing of it is copied, whether the names come from its list or from a caller."""
    place = Location(None, "runs/x", "s3://runs/x", False)  # type: ignore[arg-type] - nobody is to be asked
    monkeypatch.setattr(s3, "list_objects", lambda *_: iter([("good", 1), (name, 1)]))
    monkeypatch.setattr(s3, "client", lambda _: pytest.fail("a copy was begun"))
    hidden = name.endswith("..")  # a list leaves out what is hidden
    for names in (["good", name], *([] if hidden else [None])):
        with pytest.raises(StorageError, match="not the name of a file in this folder"):
            transfer.download(place, tmp_path / "to", names)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", NAMES)
def test_nor_does_a_name_on_a_disk(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "x").write_bytes(b"secret")
    with pytest.raises(StorageError, match="not the name of a file"):
        transfer.download(storage.resolve(str(tmp_path / "there")), tmp_path / "to", [name])
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_signs_only_files_of_its_stage(tmp_path: Path, name: str) -> None:
    """Or `adamllm push` would send what it names."""
    stage = RunFolder(str(tmp_path)).stage("train")
    stage.begin({})
    path = Path(stage.path) / "manifest.json"
    path.write_text(stage.finish(rows_in=0, verdicts={}, seconds=0).to_json())
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"files": [{"path": name, "bytes": 6, "sha256": "0" * 64}]}))
    with pytest.raises(StorageError, match="not the name of a file"):
        stage.manifest()


@pytest.mark.parametrize("files", [[{}], [{"path": 3}], [3], {"path": "x"}, 3])
def test_a_manifest_with_other_lists_is_damaged(files: object) -> None:
    text = json.dumps({**json.loads(Manifest("s", {}, 0, 0, 0, 0, {}, [], 0.0).to_json()), "files": files})
    with pytest.raises(StorageError, match="damaged"):
        Manifest.from_json(text)


def test_a_checkpoint_is_made_of_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "a").write_bytes(b"1234")
    place = storage.resolve(str(folder))
    write_complete(place, 1, 1, sign_files(place, ["a"]))
    assert examine(place)[0] is not None
    tree = json.loads((folder / COMPLETE).read_text())
    for name in NAMES:
        (folder / COMPLETE).write_text(
            json.dumps(tree | {"files": [*tree["files"], {**tree["files"][0], "path": name}]})
        )
        assert "damaged" in examine(place)[1]


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", "", "a\0b", "x" * 100, ".hidden", "-rf", "a\nb"])
def test_the_name_of_a_replay_source_is_the_name_of_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match=r"mixture\.replay\.0\.name"):
        parse_config(
            {"run": {"output": "x"}, "mixture": {"replay": [{"name": name, "path": "p.jsonl", "weight": 1.0}]}}
        )


@pytest.mark.parametrize("name", ["../../..", "/etc", "..", "", "judge/../base", "judge/", "nonsense", "a\0b"])
def test_pocket_models_are_those_that_ship(name: str) -> None:
    with pytest.raises(ModelError, match="no pocket model is called"):
        resolve_model(f"pocket:{name}")


def test_an_endpoint_is_an_address_without_a_password() -> None:
    for endpoint in ("http://key:hush@127.0.0.1", "http://127.0.0.1/path?x", "file:///etc", "http://a b", "127.0.0.1"):
        with pytest.raises(ConfigError, match=r"endpoint|user or password"):
            parse_config({"run": {"output": "x"}, "data": {"s3": {"endpoint": endpoint}}})
    assert S3Section(endpoint="http://[::1]:9000").endpoint
