"""Killed during a save, at five points, on disk and on S3: the next life uses the newest whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data import storage
from adamllm_ray.training.snapshots import examine, names, tidy
from tests.training.checkpoint_lives import STEPS, live

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights' sum, bit for bit, of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found: str = live(str(folder / "runs"), folder, STEPS)["sum"]
    return found


def test_killed_during_a_save_on_disk(tmp_path: Path, undisturbed: str) -> None:
    runs = str(tmp_path / "runs")
    lives = [
        live(runs, tmp_path, 2, "one file"),  # the save of step 2 is cut short: step 1 is the newest
        live(runs, tmp_path, 3, "no seal"),
        live(runs, tmp_path, 4, "sealed"),  # whole, though nobody was told of it
        live(runs, tmp_path, 6, "deleting"),  # the new one is whole, the oldest half gone
        live(runs, tmp_path, STEPS),
    ]
    assert [one["start"] for one in lives] == [0, 1, 2, 4, 6]
    assert ["not written to its end" in " ".join(one["passed_over"]) for one in lives] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert lives[-1]["sum"] == undisturbed
    place = storage.resolve(runs)
    broken = [name for name in names(place) if examine(place.child(name))[0] is None]
    assert len(broken) == 3
    tidy(place, keep=2)
    assert [examine(place.child(name))[0].step for name in names(place)] == [8, 7]  # type: ignore[union-attr]


def test_killed_while_uploading(bucket: Any, tmp_path: Path, undisturbed: str) -> None:
    runs = "s3://runs/lives"
    lives = [
        live(runs, tmp_path, 2, "uploading"),
        live(runs, tmp_path, 3, "no seal"),
        live(runs, tmp_path, STEPS),
    ]
    assert [one["start"] for one in lives] == [0, 1, 2]
    assert lives[-1]["sum"] == undisturbed
    assert "not written to its end" in lives[1]["passed_over"][0]
