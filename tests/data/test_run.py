"""The run folder: what it refuses, what it survives, what it signs."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import (
    ConfigError,
    FingerprintMismatch,
    RowAccountingError,
    RunLocked,
    StorageError,
)

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]
PRINT = {"source": {"path": "/data", "sha256": "ab"}, "limits": (1, 2), "code": "1234"}


def write_rows(stage: StageFolder, ids: list[str], name: str = "part-00000.parquet") -> Path:
    file = Path(stage.data) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "text": ["x" * 100] * len(ids)}), file)
    return file


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return RunFolder(str(tmp_path / "run")).stage("ingest")


@pytest.fixture
def finished(stage: StageFolder) -> StageFolder:
    stage.begin(PRINT)
    write_rows(stage, ["a", "b", "c"])
    stage.finish(rows_in=3, verdicts={"ok": 1, "duplicate": 1, "image_missing": 1}, seconds=1.5, extra={"shards": 1})
    return stage


def test_states_follow_each_other(stage: StageFolder) -> None:
    assert stage.begin(PRINT) == "fresh"
    assert stage.begin(PRINT) == "resume"
    assert stage.manifest() is None
    write_rows(stage, ["a"])
    manifest = stage.finish(rows_in=1, verdicts={"ok": 1}, seconds=1)
    assert stage.begin(PRINT) == "finished"
    assert stage.manifest() == manifest
    assert manifest.files[0]["path"] == "data/part-00000.parquet"
    assert manifest.versions["pyarrow"] == pa.__version__


def test_manifest_counts_outcomes(finished: StageFolder) -> None:
    manifest = finished.manifest()
    assert manifest is not None
    assert (manifest.kept, manifest.rejected, manifest.failed, manifest.rows_in) == (1, 1, 1, 3)


def test_identity_changes_with_content(finished: StageFolder, tmp_path: Path) -> None:
    other = RunFolder(str(tmp_path / "other")).stage("ingest")
    other.begin(PRINT)
    write_rows(other, ["a"])
    manifest = other.finish(rows_in=1, verdicts={"ok": 1}, seconds=9)
    assert finished.manifest() is not None
    assert manifest.identity != finished.manifest().identity  # type: ignore[union-attr]


def test_row_identity_is_enforced(stage: StageFolder) -> None:
    stage.begin(PRINT)
    with pytest.raises(RowAccountingError, match="10 rows came in, but 8 kept"):
        stage.finish(rows_in=10, verdicts={"ok": 8, "image_missing": 1}, seconds=1)
    assert stage.manifest() is None


def test_another_fingerprint_is_refused_and_the_keys_are_named(finished: StageFolder) -> None:
    changed = {**PRINT, "source": {"path": "/other", "sha256": "ab"}, "extra": 1}
    with pytest.raises(FingerprintMismatch) as caught:
        finished.begin(changed)
    assert set(caught.value.differing) == {"source.path", "extra"}
    assert "/other" in str(caught.value)
    assert "--force-new" in str(caught.value)
    assert finished.begin(PRINT) == "finished"


def test_force_new_moves_the_old_folder_aside(finished: StageFolder) -> None:
    assert finished.begin({"new": 1}, force_new=True) == "fresh"
    assert finished.begin({"new": 2}, force_new=True) == "fresh"
    names = sorted(path.name for path in Path(finished.path).parent.iterdir())
    assert names == ["ingest", "ingest.old-1", "ingest.old-2"]
    assert (Path(finished.path).parent / "ingest.old-1" / "data" / "part-00000.parquet").exists()
    assert not Path(finished.data).exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}"])
def test_data_without_its_fingerprint_is_not_ours(finished: StageFolder, content: bytes | None) -> None:
    file = Path(finished.path) / "fingerprint.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(FingerprintMismatch):
        finished.begin(PRINT)


def test_clear_keeps_the_fingerprint(stage: StageFolder) -> None:
    stage.begin(PRINT)
    write_rows(stage, ["a"])
    stage.clear()
    assert list(Path(stage.data).iterdir()) == []
    assert stage.begin(PRINT) == "resume"


def write_block(stage: StageFolder, name: str, *suffixes: str) -> Path:
    """A block of one row in the data, and in the ledger under its name with each suffix. Returns the data file."""
    ledger = Path(stage.ledger)
    ledger.mkdir(exist_ok=True)
    for suffix in suffixes:
        pq.write_table(pa.table({"id": [name]}), ledger / f"{name}{suffix}.parquet")
    return write_rows(stage, [name], f"{name}-0.parquet")


def test_half_done_rename_is_healed(stage: StageFolder) -> None:
    stage.begin(PRINT)
    write_block(stage, "w_000001", "", ".pending")
    write_block(stage, "w_000002", ".pending")
    assert stage.begin(PRINT) == "resume"
    left = sorted(path.name for path in Path(stage.ledger).iterdir())
    assert left == ["w_000001.parquet", "w_000002.pending.parquet"]
    assert sorted(stage.row_ids()) == ["w_000001", "w_000002"]


@pytest.mark.parametrize("damage", ["cut off", "gone", "another block's"])
def test_a_write_that_died_over_finished_data_is_done_again(stage: StageFolder, damage: str) -> None:
    """Its node died after the commit, Ray wrote the block once more, and the driver died in the middle of that."""
    stage.begin(PRINT)
    file = write_block(stage, "w_000001", "", ".pending")
    whole = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "gone":
        file.unlink()
    else:
        write_rows(stage, ["w_000009"], file.name)
    assert stage.begin(PRINT) == "resume"
    assert [path.name for path in Path(stage.ledger).iterdir()] == ["w_000001.pending.parquet"]


def test_ids_must_be_unique(stage: StageFolder) -> None:
    stage.begin(PRINT)
    write_rows(stage, ["a", "b"])
    assert sorted(stage.row_ids()) == ["a", "b"]
    write_rows(stage, ["b", "c"], "part-00001.parquet")
    with pytest.raises(RowAccountingError, match="id b occurs more than once"):
        stage.row_ids()


def test_second_driver_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    code = f"from adamllm_ray.data.run import RunFolder\nwith RunFolder({str(tmp_path / 'run')!r}).lock(): pass"
    with run.lock():
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert "RunLocked" in other.stderr
        assert f"process {os.getpid()}" in other.stderr
        with pytest.raises(RunLocked), RunFolder(str(tmp_path / "run")).lock():
            pass
    with run.lock():
        pass


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    code = (
        "import os, signal; from adamllm_ray.data.run import RunFolder\n"
        f"with RunFolder({folder!r}).lock(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "run" / ".lock").exists()
    with RunFolder(folder).lock():
        pass


def test_a_damaged_part_is_named_and_not_read_past(finished: StageFolder) -> None:
    """Reliability test 41, for whoever reads the stage; a foreign part is not read at all."""
    part = Path(finished.data) / "part-00000.parquet"
    write_rows(finished, ["z"], "part-99999.parquet")
    assert finished.parquet_files() == [str(part)]
    assert sorted(finished.row_ids()) == ["a", "b", "c"]
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(StorageError, match=r"part-00000\.parquet has \d+ bytes, \d+ were written; `adamllm verify`"):
        finished.row_ids()
    part.unlink()
    with pytest.raises(StorageError, match=r"part-00000\.parquet is missing"):
        finished.parquet_files()


def test_small_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(str(tmp_path))
    run.write("config.yaml", b"old")

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", no_space)
    with pytest.raises(StorageError, match=r"no space left .* run the same command again"):
        run.write("config.yaml", b"new")
    assert run.read("config.yaml") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("I am a file")
    with pytest.raises(StorageError, match=r"choose another run.output"):
        RunFolder(str(tmp_path / "run")).stage("ingest").begin(PRINT)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a read-only filesystem: /proc")
def test_read_only_output() -> None:
    with pytest.raises(StorageError) as caught:
        RunFolder("/proc/adamllm").stage("ingest").begin(PRINT)
    assert "Traceback" not in str(caught.value)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("output", ["", "a\0b", "x" * 5000, "gs://bucket/x", "http://host/x", "s3://", "s3:///"])
def test_impossible_outputs(output: str) -> None:
    with pytest.raises(ConfigError):
        RunFolder(output)


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunFolder("runs/x").uri == str(tmp_path / "runs" / "x")
    assert RunFolder(f"file://{tmp_path}/y").root == str(tmp_path / "y")
    assert RunFolder("runs/x").local


def test_a_stage_folder_can_be_sent_to_a_worker(finished: StageFolder) -> None:
    assert pickle.loads(pickle.dumps(finished)).manifest() == finished.manifest()


def test_fingerprints_survive_json(stage: StageFolder) -> None:
    odd = {"tuple": (1, 2.5), "none": None, 3: "number key", "text": "ü\ud800"}
    stage.begin(odd)
    assert stage.begin(odd) == "resume"
    assert json.loads((Path(stage.path) / "fingerprint.json").read_text())["tuple"] == [1, 2.5]
