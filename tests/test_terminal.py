from __future__ import annotations

import time

from adamllm_ray.synthesis.watch import Look
from adamllm_ray.terminal import progress_lines


def test_a_running_synthesis_in_two_lines() -> None:
    seen = Look(500, 2.0, time.time() - 30, {"judged_open": 10, "kept": 90}, 100)
    first, second = progress_lines(seen, 1000)
    assert first.startswith("500 of 1000 rows (50.0%), 2 rows/s, 4 min 10 s left, last block 30 s ago")
    assert second == "kept 90, judged_open 10 (of 100 rows)"


def test_before_the_first_block_there_is_no_rate() -> None:
    assert progress_lines(Look(0, None, None, {}, 0), 1000) == ["0 of 1000 rows (0.0%)"]
