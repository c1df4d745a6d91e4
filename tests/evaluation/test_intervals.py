"""Intervals cover the truth, and tests raise false alarms, as often as they say: by simulation, and exactly for 0/1."""

import math

import numpy as np
import pytest
from scipy import stats

from adamllm_ray.evaluation.intervals import (
    Difference,
    average_difference,
    average_interval,
    holm,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    pooled,
    verdict,
    wilson_interval,
)

SIZES = (30, 100, 400)
SHARES = np.linspace(0.05, 0.95, 19)
GRADED = {  # values and their probabilities
    "recall, mostly 0": ((0, 0.25, 1 / 3, 0.5, 2 / 3, 1), (0.6, 0.05, 0.08, 0.1, 0.05, 0.12)),
    "recall, mostly 1": ((0, 0.5, 0.8, 1), (0.1, 0.1, 0.1, 0.7)),
    "rouge": (np.linspace(0, 0.8, 17), stats.beta(4, 12).pdf(np.linspace(0, 0.8, 17))),
    "mean of 3 seeds": ((0, 1 / 3, 2 / 3, 1), (0.35, 0.15, 0.15, 0.35)),
}
NEARLY_CONSTANT = {  # the usual score, and what the few others are
    "0, some half": (0, (0.5,)),
    "0, few of them whole": (0, (0.1, 0.1, 0.1, 0.25, 0.25, 0.5, 1)),
    "1, some half": (1, (0.5,)),
    "1, few of them 0": (1, (0.9, 0.9, 0.9, 0)),
    "half, both sides": (0.5, (0, 1)),
}
CHANGES = {"all up": (0.25,), "all up by one": (1,), "both ways": (0.5, -0.5), "more up": (1, 1, 1, -0.5)}


def _drawn(name, n, rng):
    values, weights = (np.asarray(part, dtype=float) for part in GRADED[name])
    return rng.choice(values, size=n, p=weights / weights.sum())


def _truth(name):
    values, weights = (np.asarray(part, dtype=float) for part in GRADED[name])
    return float(values @ weights / weights.sum())


def _error(rate, times):
    """Three standard errors of a simulated rate."""
    return 3 * math.sqrt(rate * (1 - rate) / times)


@pytest.mark.parametrize("n", SIZES)
def test_intervals_of_0_1_scores_cover_95_percent_on_average_over_shares(n):
    """No simulation: the probability of every possible number of right answers is known."""
    intervals = [mean_interval(np.r_[np.ones(k), np.zeros(n - k)]) for k in range(n + 1)]
    covered = []
    for share in SHARES:
        inside = [one.lo <= share <= one.hi for one in intervals]
        covered.append(float(stats.binom(n, share).pmf(range(n + 1)) @ inside))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.915  # a share has few possible values, so no interval covers each with the same rate


def test_the_percentile_bootstrap_would_not_cover():
    """Why it is not used: of 30 questions and a share of 0.95 it covers under 80 %."""
    n, share = 30, 0.95
    ends = [stats.binom(n, k / n).ppf([0.025, 0.975]) / n for k in range(n + 1)]  # what infinitely many resamples give
    covered = stats.binom(n, share).pmf(range(n + 1)) @ [lo <= share <= hi for lo, hi in ends]
    assert covered < 0.8


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", GRADED)
def test_intervals_of_graded_scores_cover_at_least_95_percent(name, n):
    rng, times = np.random.default_rng(n), 1000
    found = [mean_interval(_drawn(name, n, rng), samples=400, seed=i) for i in range(times)]
    covered = np.mean([one.lo <= _truth(name) <= one.hi for one in found])
    assert covered >= 0.95 - _error(0.95, times)
    assert covered <= 0.98 + _error(0.98, times)  # at n = 30 it errs to the wide side, by up to 3 %


def _nearly_constant(usual, others, n, many, rng):
    """n scores, on average so many of them not the usual one; with the mean of all such scores."""
    share, others = many / n, np.asarray(others, dtype=float)
    scores = np.where(rng.random(n) < share, rng.choice(others, n), usual)
    return scores, usual + share * (others.mean() - usual)


@pytest.mark.parametrize("n", [50, 1000])
@pytest.mark.parametrize("many", [1, 3, 10])
@pytest.mark.parametrize("name", NEARLY_CONSTANT)
def test_intervals_of_nearly_constant_scores_cover(name, many, n):
    """Resamples often have none of the scores that differ: the interval is neither 0..1 for it, nor too narrow."""
    rng, times, covered = np.random.default_rng(n), 400, 0
    for i in range(times):
        scores, truth = _nearly_constant(*NEARLY_CONSTANT[name], n, many, rng)
        one = mean_interval(scores, samples=200, seed=i)
        covered += one.lo <= truth <= one.hi
        assert one.hi - one.lo < 2 * (many + 25) / n
    assert covered / times >= 0.93 - _error(0.93, times)


@pytest.mark.parametrize("n", [30, 50, 100, 400])
@pytest.mark.parametrize("share", [0.1, 0.24, 0.36, 0.5, 0.64, 0.8, 1])
def test_intervals_cover_where_a_tenth_of_what_differs_is_far_off(share, n):
    """18 of 50 scores differ, a tenth of these by 1 and the others by 0.1: in one draw of seven none is far off."""
    rng, times, covered = np.random.default_rng(n), 600, np.zeros(2)
    for i in range(times):
        scores, truth = _nearly_constant(0, [0.1] * 9 + [1], n, share * n, rng)
        one = mean_interval(scores, samples=400, seed=i)
        two = paired_difference(np.zeros(n), scores, samples=400, seed=i)
        covered += [one.lo <= truth <= one.hi, two.lo <= truth <= two.hi]
    assert min(covered) / times >= 0.95 - _error(0.95, times)


@pytest.mark.parametrize("n", [30, 50, 100, 400])
@pytest.mark.parametrize("share", [0.1, 0.24, 0.36, 0.5, 0.64, 0.8, 1])
def test_often_a_little_better_and_as_much_worse_in_few_large_steps_is_no_difference(share, n):
    rng, times, alarms = np.random.default_rng(n), 600, 0
    for i in range(times):
        gains, truth = _nearly_constant(0, [0.1] * 9 + [-0.9], n, share * n, rng)
        assert truth == pytest.approx(0)
        alarms += paired_difference(np.full(n, 0.9), 0.9 + gains, samples=400, seed=i).p < 0.05
    assert alarms / times <= 0.05 + _error(0.05, times)


@pytest.mark.parametrize("n", [50, 1000])
@pytest.mark.parametrize("many", [1, 3, 10])
@pytest.mark.parametrize("name", CHANGES)
def test_differences_of_few_questions_cover_and_raise_no_false_alarm(name, many, n):
    rng, times, covered, alarms = np.random.default_rng(n), 400, 0, 0
    for i in range(times):
        gains, truth = _nearly_constant(0, CHANGES[name], n, many, rng)
        before = np.where(gains < 0, -gains, np.where(gains == 0, 0.7, 0.0))
        one = paired_difference(before, before + gains, samples=200, seed=i)
        covered += one.lo <= truth <= one.hi
        alarms += one.p < 0.05
        assert one.hi - one.lo < 2 * (many + 25) / n
        assert (one.p < 0.05) == (not one.lo <= 0 <= one.hi) or abs(one.p - 0.05) < 0.01
    assert covered / times >= 0.93 - _error(0.93, times)
    assert name != "both ways" or alarms / times <= 0.05


def test_an_average_with_small_columns_that_hardly_change_covers():
    """Two columns of 30 questions, of which one or none changes, beside one of 1,000: the small ones matter most."""
    rng, times, covered, wide = np.random.default_rng(3), 400, 0, 0
    for i in range(times):
        small = [_nearly_constant(0, (1,), 30, 1, rng)[0] for _ in range(2)]
        pairs = [(np.where(gain == 0, 0.7, 0.0), np.where(gain == 0, 0.7, gain)) for gain in small]
        before = (rng.random(1000) < 0.6) * 1.0
        pairs.append((before, np.where(rng.random(1000) < 0.9, before, 1.0)))
        one = average_difference(pairs, samples=200, seed=i)
        covered += one.lo <= (2 / 30 + 0.04) / 3 <= one.hi
        wide += one.hi - one.lo > 0.2
    assert covered / times >= 0.93 - _error(0.93, times)
    assert wide == 0


def test_few_scores_that_differ_by_hand():
    """Two questions more, as far off as can be: error sqrt(n var + 2) / (n + 2), of which 1.96."""
    found = mean_interval(np.r_[0.5, np.zeros(999)])
    half = 1.959964 * math.sqrt(0.25 * 0.999 + 2) / 1002
    assert (found.value, found.lo, found.hi) == pytest.approx((0.0005, 0, 0.0005 + half))
    base = np.full(500, 0.25)
    told = paired_difference(base, np.r_[0.5, 0.5, 0.5, base[3:]])
    half = 1.959964 * math.sqrt(3 / 16 - 500 * 0.0015**2 + 2) / 502
    assert (told.lo, told.hi) == pytest.approx((0.0015 - half, 0.0015 + half))
    assert told.p == pytest.approx(2 * stats.norm.sf(0.0015 / (half / 1.959964)))
    assert (mean_interval([0.5] * 98).hi - 0.5) == pytest.approx(1.959964 * math.sqrt(0.5) / 100)


@pytest.mark.parametrize("n", SIZES)
def test_average_over_tasks_of_both_kinds_covers(n):
    rng, times, shares = np.random.default_rng(n), 500, (0.95, 0.6, 0.3)
    truth = (sum(shares) + _truth("rouge") + _truth("recall, mostly 0")) / 5
    covered = 0
    for i in range(times):
        groups = [(rng.random(n) < share).astype(float) for share in shares]
        groups += [_drawn("rouge", n, rng), _drawn("recall, mostly 0", n, rng)]
        one = average_interval(groups, samples=400, seed=i)
        covered += one.lo <= truth <= one.hi
    assert 0.95 - _error(0.95, times) <= covered / times <= 0.97 + _error(0.97, times)


def _alike(draw, n, rng, same=0.5):
    """Two models that are equally good and often agree."""
    first, second = draw(n, rng), draw(n, rng)
    return first, np.where(rng.random(n) < same, first, second)


@pytest.mark.parametrize("n", SIZES)
def test_mcnemar_raises_at_most_5_percent_false_alarms_and_its_interval_covers(n):
    rng, times = np.random.default_rng(n), 3000
    found = [paired_difference(*_alike(lambda n, r: (r.random(n) < 0.6) * 1.0, n, rng)) for _ in range(times)]
    assert {one.test for one in found} == {"exact McNemar"}
    expected = float(stats.binom(n, 0.5 * 0.48).pmf(range(n + 1)) @ [_alarms(total) for total in range(n + 1)])
    assert 0.015 < expected <= 0.05  # conservative, the more so with few questions
    assert np.mean([one.p < 0.05 for one in found]) == pytest.approx(expected, abs=_error(expected, times))
    assert np.mean([one.lo <= 0 <= one.hi for one in found]) >= 0.95 - _error(0.95, times)


def _alarms(total):
    """How often the exact test of a fair coin says p < 0.05, by scipy."""
    k = np.arange(total + 1)
    p = np.minimum(1, 2 * stats.binom(total, 0.5).cdf(np.minimum(k, total - k)))
    return float(stats.binom(total, 0.5).pmf(range(total + 1)) @ (p < 0.05))


def test_mcnemar_is_conservative_exactly_and_no_more_than_it_must():
    for total in (1, 5, 6, 10, 35, 80):
        p = np.array(
            [mcnemar_exact([1] * k + [0] * (total - k), [0] * k + [1] * (total - k)) for k in range(total + 1)]
        )
        rate = stats.binom(total, 0.5).pmf(range(total + 1)) @ (p < 0.05)
        assert rate == pytest.approx(_alarms(total))
        assert (0.02 if total > 5 else -1) < rate <= 0.05


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["recall, mostly 0", "rouge", "mean of 3 seeds"])
def test_paired_bootstrap_raises_5_percent_false_alarms_and_its_interval_covers(name, n):
    rng, times = np.random.default_rng(n), 1000
    pairs = [_alike(lambda n, r: _drawn(name, n, r), n, rng) for _ in range(times)]
    found = [paired_difference(*pair, samples=400, seed=i) for i, pair in enumerate(pairs)]
    assert {one.test for one in found} == {"paired bootstrap"}
    alarms = np.mean([one.p < 0.05 for one in found])
    assert 0.03 - _error(0.03, times) <= alarms <= 0.05 + _error(0.05, times)
    assert np.mean([one.lo <= 0 <= one.hi for one in found]) >= 0.95 - _error(0.95, times)


@pytest.mark.parametrize("n", SIZES)
def test_average_difference_raises_5_percent_false_alarms(n):
    rng, times = np.random.default_rng(n), 500
    alarms = 0
    for i in range(times):
        pairs = [_alike(lambda n, r, share=share: (r.random(n) < share) * 1.0, n, rng) for share in (0.9, 0.6, 0.3)]
        pairs.append(_alike(lambda n, r: _drawn("rouge", n, r), n, rng))
        alarms += average_difference(pairs, samples=400, seed=i).p < 0.05
    assert abs(alarms / times - 0.05) <= _error(0.05, times)


def test_a_real_gain_is_found_and_its_size_is_covered():
    rng, hits, covered, times = np.random.default_rng(5), 0, 0, 300
    for i in range(times):
        before = _drawn("recall, mostly 0", 400, rng)
        after = np.where((before < 1) & (rng.random(400) < 0.2), np.minimum(before + 0.5, 1), before)
        one = paired_difference(before, after, samples=400, seed=i)
        hits += one.p < 0.05 and one.value > 0
        truth = 0.2 * (0.6 * 0.5 + 0.05 * 0.5 + 0.08 * 0.5 + 0.1 * 0.5 + 0.05 / 3)
        covered += one.lo <= truth <= one.hi
    assert hits == times
    assert covered / times >= 0.95 - _error(0.95, times)


def test_graded_interval_and_p_value_agree():
    rng = np.random.default_rng(2)
    for i in range(200):
        one = paired_difference(rng.random(25), rng.random(25) * 0.9, samples=999, seed=i)
        assert (one.p < 0.05) == (not one.lo <= 0 <= one.hi) or abs(one.p - 0.05) < 0.002


def test_interval_is_close_to_the_normal_one_for_large_samples():
    for values in (np.r_[np.ones(700), np.zeros(300)], np.r_[np.ones(690), np.full(20, 0.5), np.zeros(290)]):
        interval = mean_interval(values, samples=20_000)
        half = 1.96 * values.std() / math.sqrt(1000)
        assert interval.value == pytest.approx(0.7)
        assert interval.lo == pytest.approx(0.7 - half, abs=2e-3)
        assert interval.hi == pytest.approx(0.7 + half, abs=2e-3)


def test_interval_is_the_same_for_the_same_seed_and_any_order():
    values = [0, 1, 0.5, 0, 1]
    assert mean_interval(values, seed=3) == mean_interval(values[::-1], seed=3)


def test_paired_difference_is_narrower_than_the_unpaired_one():
    base = np.r_[np.ones(500), np.zeros(500)]
    adapted = base.copy()
    adapted[500:550] = 1  # right where base was wrong, else the same
    paired = paired_difference(base, adapted)
    assert paired.value == pytest.approx(0.05)
    assert paired.hi - paired.lo < 0.04 < 2 * (mean_interval(base).hi - mean_interval(base).lo)


def test_average_weighs_groups_equally_and_a_small_perfect_group_is_not_certain():
    interval = average_interval([np.ones(1000), np.zeros(10)])
    assert interval.value == 0.5
    assert interval.lo == pytest.approx(0.5 - (1 - wilson_interval(1000, 1000).lo) / 2)
    assert interval.hi == pytest.approx(0.5 + wilson_interval(0, 10).hi / 2)


def test_average_of_one_group_is_the_group():
    values, other = [0, 1, 0.5, 0.25], [0, 1, 1, 0.25]
    assert average_interval([values]) == mean_interval(values)
    assert average_difference([(values, other)]) == paired_difference(values, other)


def test_seeds_are_pooled_by_question_before_questions_are_drawn():
    """Five runs of one arm on 40 questions are 40 observations, not 200."""
    rng = np.random.default_rng(0)
    easy = rng.random(40)
    runs = [(rng.random(40) < easy) * 1.0 for _ in range(5)]
    assert pooled(runs) == pytest.approx(np.mean(runs, axis=0))
    width, flat = (mean_interval(values) for values in (pooled(runs), np.concatenate(runs)))
    assert width.value == pytest.approx(flat.value)
    assert width.hi - width.lo > 1.3 * (flat.hi - flat.lo)
    with pytest.raises(ValueError, match="same questions"):
        pooled([[1, 0], [1]])


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="at least one"):
        average_interval([])
    with pytest.raises(ValueError, match="paired_difference"):
        mean_interval([0, -1, 1])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        mean_interval([0.5, math.nan])
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([0, 1], [0.5])


def test_differences_without_spread():
    same = paired_difference([0.5] * 98, [0.5] * 98)
    assert (same.value, same.p) == (0, 1.0)
    assert same.hi == -same.lo == pytest.approx(1.959964 * math.sqrt(2) / 100)  # as for 0/1 scores that all agree
    shifted = paired_difference([0.25] * 98, [0.5] * 98)
    assert (shifted.value, shifted.lo, shifted.p) == (0.25, pytest.approx(0.25 - 1.25 * same.hi), 2 / 2**98)
    assert shifted.test == "sign test"
    alike = paired_difference([1, 0, 1], [1, 0, 1])
    assert alike.p == 1.0
    assert alike.lo < 0 < alike.hi


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [(0, 0, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (5, 5, 1.0), (10, 25, 0.0166738)],
)
def test_mcnemar_known_values(lost, won, expected):
    base = [1] * lost + [0] * won + [1, 0]
    adapted = [0] * lost + [1] * won + [1, 0]
    assert mcnemar_exact(base, adapted) == pytest.approx(expected, rel=1e-3)
    assert paired_difference(base, adapted).p == mcnemar_exact(base, adapted)


def test_mcnemar_with_thousands_of_questions_does_not_overflow():
    assert 0 <= mcnemar_exact(np.zeros(5000), np.ones(5000)) < 1e-300


def test_bonett_price_by_hand():
    """n = 98, 5 lost, 11 won: (6, 12) of 100; 0.06 -+ 1.96 * sqrt((0.18 - 0.0036) / 100)."""
    base = [1] * 5 + [0] * 11 + [1] * 82
    adapted = [0] * 5 + [1] * 11 + [1] * 82
    found = paired_difference(base, adapted)
    assert found.value == pytest.approx(6 / 98)
    assert (found.lo, found.hi) == pytest.approx((0.06 - 1.96 * 0.042, 0.06 + 1.96 * 0.042), abs=1e-5)


def test_wilson_is_what_the_books_say_and_never_leaves_the_unit_interval() -> None:
    found = wilson_interval(81, 263)  # Newcombe 1998, table I
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.2553, 0.3662)
    assert (wilson_interval(0, 20).lo, round(wilson_interval(0, 20).hi, 4)) == (0.0, 0.1611)
    assert wilson_interval(20, 20).hi == 1.0
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdicts_in_words():
    found = Difference(0.032, 0.011, 0.053, 0.0031, "paired bootstrap")
    assert verdict(found, 645) == (
        "B is better than A by 3.2 points (B - A: 95 % interval +1.1 to +5.3, p = 0.003, 645 questions)."
    )
    worse = Difference(-0.2, -0.3, -0.1, 1e-9, "exact McNemar")
    assert verdict(worse, 9, "base", "adapted").startswith("base is better than adapted by 20.0 points (adapted - base")
    assert "p < 0.001" in verdict(worse, 9)
    unsure = Difference(0.01, -0.02, 0.04, 0.5, "exact McNemar")
    assert verdict(unsure, 9).startswith("No difference can be told: B - A is +1.0 points (95 % interval -2.0 to +4.0")
