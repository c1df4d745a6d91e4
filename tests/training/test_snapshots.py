"""Only whole checkpoints are used, and damage of any kind shows."""

from __future__ import annotations

import random
from pathlib import Path

from adamllm_ray.data import storage
from adamllm_ray.training.snapshots import COMPLETE, examine, newest_valid, sign_files, snapshot_name, write_complete


def make(root: Path, step: int) -> Path:
    folder = root / snapshot_name(step)
    (folder / "state").mkdir(parents=True)
    for rank in range(2):
        (folder / "state" / f"shard-{rank}.pt").write_bytes(random.Random(step + rank).randbytes(5000))
    write_complete(folder, step, 2, sign_files(folder))
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
