"""What is searched: a mixture and fields of the configuration as one flat point, and what a point means.

    space = Space.of(config.tuning)
    space.parameters({"mixture.0": 0.3, "training.learning_rate": 1e-4})   -> weights and fields
    space.start(seed)                                                      -> the first points, the paper's recipe first

A point is what searchers see (numbers and choices by name), parameters are what a trial gets.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adamllm_ray.config.tuning import FieldRange, TuningSection
from adamllm_ray.tuning.simplex import Simplex

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIXTURE = "mixture."  # before the number of a mixture's coordinate; no field of the configuration is a number
Point = dict[str, Any]


@dataclass(frozen=True)
class Parameters:
    """What a trial is told: shares of the mixture, and values of fields."""

    weights: dict[str, float]
    fields: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"weights": self.weights, "fields": self.fields}

    @property
    def key(self) -> str:
        """Name of the trial's folder: the same parameters have the same one, whoever suggests them."""
        text = json.dumps([sorted(self.weights.items()), sorted(self.fields.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Space:
    """The simplex of the sources (None: the mixture is not searched) and the ranges of the fields."""

    simplex: Simplex | None
    fields: Mapping[str, FieldRange]

    @classmethod
    def of(cls, section: TuningSection) -> Space:
        """The space of a configuration."""
        bounds = {name: (one.low, one.high) for name, one in section.sources.items()}
        return cls(Simplex(bounds) if bounds else None, section.fields)

    @property
    def names(self) -> list[str]:
        """Of the coordinates of a point."""
        return [*self._coordinates(), *self.fields]

    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna searches."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in self._coordinates()}
        for name, field in self.fields.items():
            if field.values is not None:
                found[name] = CategoricalDistribution(field.values)
            elif field.integer:
                found[name] = IntDistribution(int(field.low or 0), int(field.high or 0), log=field.log)
            else:
                found[name] = FloatDistribution(float(field.low or 0), float(field.high or 0), log=field.log)
        return found

    def parameters(self, point: Point) -> Parameters:
        """What a point means."""
        units = [point[name] for name in self._coordinates()]
        return Parameters(
            self.simplex.weights(units) if self.simplex else {},
            {name: point[name] for name in self.fields},
        )

    def point(self, parameters: Parameters) -> Point | None:
        """The point of these parameters, None when they are outside of the space."""
        if set(parameters.weights) != set(self.simplex.names if self.simplex else ()):
            return None
        if set(parameters.fields) != set(self.fields) or not self._holds(parameters):
            return None
        units = self.simplex.units(parameters.weights) if self.simplex else []
        return dict(zip(self._coordinates(), units, strict=True)) | dict(parameters.fields)

    def recipe(self, fields: Mapping[str, Any]) -> Parameters:
        """The paper's: each kept task together with its caption. Where that is no source, as many of the one as of the
        other. ``fields``: what the configuration has for the fields that are searched.
        """
        weights: dict[str, float] = {}
        if self.simplex:
            wanted = {"both": 1.0} if "both" in self.simplex.names else {"caption": 0.5, "task": 0.5}
            weights = self.simplex.nearest(wanted)
        return Parameters(weights, {name: self._clipped(name, fields[name]) for name in self.fields})

    def start(self, section: TuningSection, fields: Mapping[str, Any], seed: int) -> list[Point]:
        """The first points: the paper's recipe, the corners of the mixture, and a design over the whole space."""
        recipe = self.recipe(fields)
        corners = self.simplex.corners() if self.simplex else []
        first = [recipe, *(Parameters(corner, recipe.fields) for corner in corners)]
        design = [self._scaled(row) for row in _design(section.start, section.start_trials, len(self.names), seed)]
        listed = [point for one in first if (point := self.point(one)) is not None] + design
        known = {self.parameters(point).key: point for point in reversed(listed)}
        return [point for point in listed if known.get(self.parameters(point).key) is point]

    def encoded(self, parameters: Parameters) -> list[float]:
        """Coordinates in 0..1 for a regression: shares as they are, fields scaled, choices by position."""
        return [*parameters.weights.values(), *(self._unit(name, parameters.fields[name]) for name in self.fields)]

    @property
    def columns(self) -> list[str]:
        """Names of what `encoded` gives."""
        return [*(self.simplex.names if self.simplex else ()), *self.fields]

    def uniform(self, count: int, seed: int) -> list[Parameters]:
        """Parameters drawn uniformly."""
        rows = np.random.default_rng(seed).random((count, len(self.names)))
        return [self.parameters(self._scaled(row)) for row in rows.tolist()]

    def _coordinates(self) -> list[str]:
        return [f"{MIXTURE}{number}" for number in range(self.simplex.dimensions if self.simplex else 0)]

    def _scaled(self, row: Sequence[float]) -> Point:
        """Numbers in 0..1 -> a point."""
        coordinates = self._coordinates()
        found: Point = dict(zip(coordinates, row, strict=False))
        for (name, field), unit in zip(self.fields.items(), row[len(coordinates) :], strict=True):
            found[name] = _at(field, unit)
        return found

    def _unit(self, name: str, value: Any) -> float:
        field = self.fields[name]
        if field.values is not None:
            return field.values.index(value) / (len(field.values) - 1)
        low, high = float(field.low or 0), float(field.high or 0)
        if field.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def _clipped(self, name: str, value: Any) -> Any:
        """What the configuration has, moved into the range."""
        field = self.fields[name]
        if field.values is not None:
            return value if value in field.values else field.values[0]
        if value is None:
            return _at(field, 0.5)
        inside = min(max(value, field.low), field.high)
        return int(inside) if field.integer else float(inside)

    def _holds(self, parameters: Parameters) -> bool:
        if self.simplex:
            weights = np.array([parameters.weights[name] for name in self.simplex.names])
            below, above = self.simplex.low - weights, weights - self.simplex.low - self.simplex.cap
            if max(below.max(), above.max(), abs(weights.sum() - 1)) > 1e-4:
                return False
        return all(self._clipped(name, value) == value for name, value in parameters.fields.items())


def _at(field: FieldRange, unit: float) -> Any:
    """The value at this part of a range."""
    if field.values is not None:
        return field.values[min(int(unit * len(field.values)), len(field.values) - 1)]
    low, high = float(field.low or 0), float(field.high or 0)
    if field.integer:
        if field.log:
            return min(int(math.exp(math.log(low) + unit * math.log((high + 1) / low))), int(high))
        return min(int(low + unit * (high + 1 - low)), int(high))
    return math.exp(math.log(low) + unit * math.log(high / low)) if field.log else low + unit * (high - low)


def _design(kind: str, count: int, dimensions: int, seed: int) -> list[list[float]]:
    """Rows of numbers in 0..1."""
    if not count or not dimensions:
        return []
    if kind == "dirichlet":
        rows: list[list[float]] = np.random.default_rng(seed).random((count, dimensions)).tolist()
        return rows
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, seed=seed).random_base2(max(0, (count - 1).bit_length()))
    spread: list[list[float]] = sequence[:count].tolist()
    return spread
