import numpy as np
import pytest

from adamllm_ray.evaluation.baselines import colour, fit_linear, majority
from adamllm_ray.evaluation.tasks import Question


def _pixels(image: bytes) -> np.ndarray:
    """The test's images are raw 2 x 2 RGB pixels."""
    return np.frombuffer(image, np.uint8).reshape(2, 2, 3)


def _questions(count, seed, *, colour_tells):
    rng = np.random.default_rng(seed)
    for i in range(count):
        array = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        blue = array[..., 2].mean() > array[..., 0].mean() if colour_tells else rng.random() < 0.5
        yield Question(f"{seed}-{i}", array.tobytes(), "Blue?", "yes" if blue else "no", "blue", "closed")


def test_majority_says_where_it_was_fitted():
    test = [Question(str(i), b"", "?", answer, "t", "closed") for i, answer in enumerate(["yes", "yes", "no"])]
    train = [Question("x", b"", "?", "no", "t", "closed")]
    assert majority(test, None).fitted_on == "test"
    assert majority(test, None).accuracy == pytest.approx({"t": 2 / 3})
    assert majority(test, train).fitted_on == "train"
    assert majority(test, train).accuracy == pytest.approx({"t": 1 / 3})


def test_majority_of_an_unseen_type_is_wrong_not_an_error():
    train = [Question("x", b"", "?", "no", "other", "closed")]
    assert majority([Question("y", b"", "?", "no", "t", "closed")], train).accuracy == {"t": 0.0}


def test_colour_solves_what_colour_tells():
    train = list(_questions(600, 1, colour_tells=True))
    test = list(_questions(300, 2, colour_tells=True))
    assert colour(test, train, _pixels).accuracy["blue"] > 0.95


def test_colour_is_at_chance_where_colour_does_not_tell():
    train = list(_questions(600, 1, colour_tells=False))
    test = list(_questions(600, 2, colour_tells=False))
    assert colour(test, train, _pixels).accuracy["blue"] == pytest.approx(0.5, abs=0.08)


def test_linear_model_with_three_classes_constant_feature_and_one_class():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    x[:, 2] = 7.0
    labels = [["a", "b", "c"][int(v)] for v in np.digitize(x[:, 0] + x[:, 1], [-1, 1])]
    right = np.mean([a == b for a, b in zip(fit_linear(x, labels).predict(x), labels, strict=True)])
    assert right > 0.9
    assert set(fit_linear(x, ["only"] * 300).predict(x)) == {"only"}
