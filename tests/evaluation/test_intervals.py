import math

import numpy as np
import pytest

from adamllm_ray.evaluation.intervals import average_interval, mcnemar_exact, mean_interval, wilson_interval


def test_interval_is_close_to_the_normal_one_for_large_samples():
    values = np.r_[np.ones(700), np.zeros(300)]
    interval = mean_interval(values, samples=20_000)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert interval.value == 0.7
    assert interval.lo == pytest.approx(0.7 - half, abs=2e-3)
    assert interval.hi == pytest.approx(0.7 + half, abs=2e-3)


def test_interval_covers_the_truth_about_95_percent_of_the_time():
    rng = np.random.default_rng(1)
    samples = rng.random((400, 200)) < 0.6
    intervals = [mean_interval(row, samples=500, seed=i) for i, row in enumerate(samples)]
    covered = np.mean([interval.lo <= 0.6 <= interval.hi for interval in intervals])
    assert 0.91 <= covered <= 0.98


def test_interval_is_the_same_for_the_same_seed_and_any_order():
    values = [0, 1, 1, 0, 1]
    assert mean_interval(values, seed=3) == mean_interval(values[::-1], seed=3)


def test_paired_difference_is_narrower_than_the_unpaired_one():
    base = np.r_[np.ones(500), np.zeros(500)]
    adapted = base.copy()
    adapted[500:550] = 1  # right where base was wrong, else the same
    paired = mean_interval(adapted - base)
    assert paired.value == pytest.approx(0.05)
    assert paired.hi - paired.lo < 0.04 < 2 * (mean_interval(base).hi - mean_interval(base).lo)


def test_average_weighs_groups_equally():
    interval = average_interval([np.ones(1000), np.zeros(10)])
    assert (interval.value, interval.lo, interval.hi) == (0.5, 0.5, 0.5)


def test_empty_groups_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [(0, 0, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (5, 5, 1.0), (10, 25, 0.0166738)],
)
def test_mcnemar_known_values(lost, won, expected):
    base = [1] * lost + [0] * won + [1, 0]
    adapted = [0] * lost + [1] * won + [1, 0]
    assert mcnemar_exact(base, adapted) == pytest.approx(expected, rel=1e-3)


def test_mcnemar_with_thousands_of_questions_does_not_overflow():
    assert 0 <= mcnemar_exact(np.zeros(5000), np.ones(5000)) < 1e-300


def test_wilson_is_what_the_books_say_and_never_leaves_the_unit_interval() -> None:
    found = wilson_interval(81, 263)  # Newcombe 1998, table I
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.2553, 0.3662)
    assert (wilson_interval(0, 20).lo, round(wilson_interval(0, 20).hi, 4)) == (0.0, 0.1611)
    assert wilson_interval(20, 20).hi == 1.0
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)
