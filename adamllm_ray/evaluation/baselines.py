"""What one gets without looking (majority answer) and with looking at colour alone (linear model).

A model that does not beat both has learned nothing about the images that matters. Both are fitted on labelled
questions of the train domain where a task has them; the majority answer falls back to the test answers
themselves (which flatters it) and says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adamllm_ray.evaluation.metrics import Mode, score
from adamllm_ray.evaluation.tasks import Question

Features = NDArray[np.float64]
MODES: tuple[Mode, ...] = ("strict", "paper")
L2 = 1e-3
STEPS = 400


@dataclass(frozen=True, slots=True)
class Baseline:
    """Strict accuracy per question type; ``fitted_on`` is 'train' or 'test' and goes beside the number."""

    name: str
    fitted_on: str
    accuracy: dict[str, float]
    values: dict[Mode, dict[str, float]] = field(repr=False)  # mode -> question id -> score


def majority(test: Sequence[Question], train: Sequence[Question] | None) -> Baseline:
    """Always give the most common answer of the question's type."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train or test:
        counts[question.type][question.answer] += 1
    answers = {name: min(seen, key=lambda text: (-seen[text], text)) for name, seen in counts.items()}
    predictions = [answers.get(question.type, "") for question in test]
    return _baseline("majority", "train" if train else "test", test, predictions)


def colour(
    test: Sequence[Question], train: Sequence[Question], pixels: Callable[[bytes], NDArray[np.uint8]]
) -> Baseline:
    """Per type, a linear classifier from mean and standard deviation of each colour channel to the answer.

    Args:
        test: questions to answer.
        train: labelled questions of the same types.
        pixels: encoded bytes -> RGB array of shape (height, width, 3).
    """
    train_x, test_x = colour_features(train, pixels), colour_features(test, pixels)
    predictions = [""] * len(test)
    for name in sorted({question.type for question in test}):
        known = [i for i, question in enumerate(train) if question.type == name]
        asked = [i for i, question in enumerate(test) if question.type == name]
        if not known:
            continue
        model = fit_linear(train_x[known], [train[i].answer for i in known])
        for i, answer in zip(asked, model.predict(test_x[asked]), strict=True):
            predictions[i] = answer
    return _baseline("colour", "train", test, predictions)


def colour_features(questions: Iterable[Question], pixels: Callable[[bytes], NDArray[np.uint8]]) -> Features:
    """Shape (questions, 6): mean and standard deviation of R, G, B in 0..1. An image is decoded once."""
    known: dict[bytes, list[float]] = {}
    rows = []
    for question in questions:
        image = question.image or b""
        if image not in known:
            array = pixels(image).reshape(-1, 3) / 255.0
            known[image] = [*array.mean(axis=0), *array.std(axis=0)]
        rows.append(known[image])
    return np.asarray(rows, dtype=np.float64).reshape(-1, 6)


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Softmax regression on standardised features; weights have shape (features + 1, classes)."""

    classes: list[str]
    mean: Features
    scale: Features
    weights: Features

    def predict(self, x: Features) -> list[str]:
        """The likeliest class of each row of ``x``, shape (n, features)."""
        logits = _with_bias((x - self.mean) / self.scale) @ self.weights
        return [self.classes[i] for i in logits.argmax(axis=1)]


def fit_linear(x: Features, labels: Sequence[str]) -> LinearModel:
    """Multinomial logistic regression: full-batch Nesterov descent from zero at the safe step; deterministic."""
    classes = sorted(set(labels))
    target = np.eye(len(classes))[[classes.index(label) for label in labels]]
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    design = _with_bias((x - mean) / scale)
    curvature = 0.5 * float(np.linalg.eigvalsh(design.T @ design / len(design))[-1]) + L2
    weights = ahead = np.zeros((design.shape[1], len(classes)))
    for step in range(STEPS):
        logits = design @ ahead
        likely = np.exp(logits - logits.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        gradient = design.T @ (likely - target) / len(design) + L2 * ahead
        previous, weights = weights, ahead - gradient / curvature
        ahead = weights + step / (step + 3) * (weights - previous)
    return LinearModel(classes, mean, scale, weights)


def _with_bias(x: Features) -> Features:
    return np.hstack([x, np.ones((len(x), 1))])


def _baseline(name: str, fitted_on: str, test: Sequence[Question], predictions: Sequence[str]) -> Baseline:
    answered = list(zip(test, predictions, strict=True))
    values: dict[Mode, dict[str, float]] = {
        mode: {one.id: score(said, one, mode).value if said else 0.0 for one, said in answered} for mode in MODES
    }
    groups: dict[str, list[float]] = defaultdict(list)
    for one in test:
        groups[one.type].append(values["strict"][one.id])
    return Baseline(name, fitted_on, {kind: sum(group) / len(group) for kind, group in groups.items()}, values)
