import numpy as np
import pytest

from adamllm_ray.quality.calibration import Agreement, Calibration, follows_literally, wilson


def test_brier_and_bins_by_hand():
    calibration = Calibration()
    for probability, right in [(0.95, True), (0.95, True), (0.85, False), (0.05, False), (1.0, True)]:
        calibration.add(probability, right)
    found = calibration.result()
    squares = [0.05**2, 0.05**2, 0.85**2, 0.05**2, 0.0]
    assert found["n"] == 5
    assert found["brier"] == pytest.approx(sum(squares) / 5)
    assert found["base_rate"] == 0.6
    assert found["brier_of_base_rate"] == pytest.approx(0.24)
    assert [(cell["lo"], cell["n"], cell["right"]) for cell in found["bins"]] == [
        (0.0, 1, 0.0),
        (0.8, 1, 0.0),
        (0.9, 3, 1.0),
    ]
    assert found["error"] == pytest.approx((0.05 + 0.85 + 3 * (1 - 2.9 / 3)) / 5)


def test_a_calibrated_judge_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    calibration = Calibration()
    for probability in rng.random(20_000):
        calibration.add(float(probability), bool(rng.random() < probability))
    found = calibration.result()
    assert found["error"] < 0.02
    assert all(cell["right_lo"] - 0.02 <= cell["probability"] <= cell["right_hi"] + 0.02 for cell in found["bins"])
    assert found["brier"] == pytest.approx(1 / 6, abs=0.01)


def test_nothing_labelled_nothing_said():
    assert Calibration().result() is None
    assert Agreement().result() is None


@pytest.mark.parametrize(
    ("informative", "precise", "rule"),
    [
        ("There are three boats at the pier.", "3", True),
        ("There are three boats at the pier.", "Three boats.", True),
        ("There are three boats at the pier.", "two", False),
        ("It is the left side.", "Left side", True),
        ("The side on the left.", "left side", False),  # words in another order are not quoted
        ("The sea is calm.", "yes", None),
        ("The sea is calm.", "No.", None),
        ("The sea is calm.", "", None),
        ("The sea is calm.", "one two three four five six seven eight nine", None),
        ("mandarin", "a man", False),  # whole words
    ],
)
def test_the_rule(informative, precise, rule):
    assert follows_literally(informative, precise) is rule


def test_agreement_by_hand():
    agreement = Agreement()
    for kept, rule in (
        [(True, True)] * 6 + [(True, False)] + [(False, True)] * 2 + [(False, False)] * 11 + [(True, None)]
    ):
        agreement.add(kept, rule)
    found = agreement.result()
    assert (found["n"], found["abstained"], found["judge_only"], found["rule_only"]) == (20, 1, 1, 2)
    assert found["agreement"] == 0.85
    assert found["kappa"] == pytest.approx((0.85 - 0.53) / 0.47)  # chance: .35 * .4 + .65 * .6
    same = Agreement()
    same.add(True, True)
    assert same.result()["kappa"] is None


def test_wilson_by_hand():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
