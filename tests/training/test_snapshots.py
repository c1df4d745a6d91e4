"""Only whole checkpoints are used, and damage of any kind shows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from adamllm_ray.data import storage
from adamllm_ray.training.snapshots import (
    COMPLETE,
    FolderNotShared,
    Snapshot,
    examine,
    names,
    newest_valid,
    sign_files,
    snapshot_name,
    tidy,
    write_complete,
)

pytestmark = pytest.mark.guards


def make(root: Path, step: int) -> Path:
    folder = root / snapshot_name(step)
    (folder / "state").mkdir(parents=True)
    for rank in range(2):
        (folder / "state" / f"shard-{rank}.pt").write_bytes(random.Random(step + rank).randbytes(5000))
    place = storage.resolve(str(folder))
    write_complete(place, step, 2, sign_files(place, [f"state/shard-{rank}.pt" for rank in range(2)]))
    return folder


def test_the_newest_whole_one_is_used(tmp_path: Path) -> None:
    runs = storage.resolve(str(tmp_path))
    assert newest_valid(runs) == (None, [])
    old, middle, new = make(tmp_path, 5), make(tmp_path, 10), make(tmp_path, 100)
    assert newest_valid(runs)[0].step == 100  # type: ignore[union-attr]
    (new / "state" / "shard-1.pt").unlink()
    (middle / COMPLETE).unlink()
    snapshot, problems = newest_valid(runs)
    assert snapshot is not None
    assert (snapshot.name, snapshot.step, snapshot.world) == (old.name, 5, 2)
    assert len(problems) == 2
    assert "shard-1.pt has no bytes" in problems[0]
    assert "not written to its end" in problems[1]


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    place, draw = storage.resolve(str(folder)), random.Random(0)
    for _ in range(50):
        shard = draw.choice(sorted((folder / "state").iterdir()))
        data = bytearray(shard.read_bytes())
        position = draw.randrange(len(data))
        data[position] ^= 1 << draw.randrange(8)
        whole = shard.read_bytes()
        shard.write_bytes(data)
        assert examine(place)[0] is None
        shard.write_bytes(whole)
    assert examine(place)[0] is not None


def test_truncated_shard_and_damaged_seal(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    place = storage.resolve(str(folder))
    shard = folder / "state" / "shard-0.pt"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "4999 bytes, 5000 were written" in examine(place)[1]
    (folder / COMPLETE).write_text("{")
    assert "damaged" in examine(place)[1]


def test_a_seal_is_not_put_on_what_cannot_be_seen(tmp_path: Path) -> None:
    """Worker 1 of another node wrote to its own disk: the folder is not shared."""
    place = storage.resolve(str(tmp_path))
    (tmp_path / "a.pt").write_bytes(b"1234")
    files = sign_files(place, ["a.pt"])
    with pytest.raises(FolderNotShared, match="all nodes share"):
        write_complete(place, 1, 2, [*files, {"path": "b.pt", "bytes": 4, "sha256": ""}])
    assert examine(place)[0] is None
    write_complete(place, 1, 2, files)
    assert examine(place)[0] is not None


def test_tidying_keeps_the_newest_whole_ones_and_deletes_what_a_death_left(tmp_path: Path) -> None:
    runs = storage.resolve(str(tmp_path))
    folders = {step: make(tmp_path, step) for step in (1, 2, 3, 4, 5)}
    (folders[5] / COMPLETE).unlink()  # died while it was written
    (folders[4] / "state" / "shard-0.pt").write_bytes(b"damaged")
    (folders[1] / "state" / "shard-0.pt").unlink()  # died while it was deleted
    tidy(runs, keep=2)
    assert names(runs) == [folders[step].name for step in (4, 3, 2)]
    assert newest_valid(runs)[0].step == 3  # type: ignore[union-attr]


def test_each_worker_reads_its_own_shards_and_what_is_common() -> None:
    common = ["state/mp_rank_00_model_states.pt"]
    own = {
        rank: [f"state/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", f"worker-{rank}.json"] for rank in (1, 11)
    }
    snapshot = Snapshot("n", 1, 12, [{"path": path} for path in (*common, *own[1], *own[11])])
    assert snapshot.needed_by(1) == [*common, *own[1]]
    assert snapshot.needed_by(11) == [*common, *own[11]]
