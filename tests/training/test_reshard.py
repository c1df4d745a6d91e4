"""What cannot be converted is named; that what can be gives the same losses is in test_loop.py and test_trainer.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamllm_ray.errors import TrainingError
from adamllm_ray.training.reshard import to_universal


def test_a_checkpoint_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(TrainingError, match="cannot be converted"):
        to_universal(tmp_path, tmp_path / "universal")
