"""The section of `adamllm tune`: what is searched, how, on which questions, and how much it may cost.

tuning:
  sources: { caption: {}, task: { low: 0.2 }, "replay:general": { high: 0.5 } }    # shares that sum to one
  fields: { training.learning_rate: { low: 1.0e-5, high: 1.0e-3, log: true } }
  validation: [{ name: ours, path: validation.parquet }]                           # never the test questions
  trials: 24
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from adamllm_ray.config.evaluation import TaskSection
from adamllm_ray.config.fields import Count, Finite, Positive, Section, Share

FORMS = ("both", "caption", "task")  # what a record of the run can become
REPLAY = "replay:"  # before the name of a source of mixture.replay
MOST_SOURCES = 8
LEAST_DOMAIN = 0.05  # of the examples must be the run's own, or the weight of a replay source has no bound

Scalar = bool | int | float | str | None


class SourceBounds(Section):
    """Between which shares of the mixture a source is searched."""

    low: Share = 0.0
    high: Share = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> SourceBounds:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}): swap them")
        return self


class FieldRange(Section):
    """Which values a field of the configuration may take: a range, or a list."""

    low: Finite | None = None
    high: Finite | None = None
    log: bool = Field(default=False, description="Search the logarithm: for learning rates.")
    integer: bool = Field(default=False, description="Whole numbers only, both ends included.")
    values: list[Scalar] | None = Field(default=None, description="Instead of a range.")

    @model_validator(mode="after")
    def _one_of_two(self) -> FieldRange:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log or self.integer:
                raise ValueError("give a range (low, high) or values, not both")
            if len(self.values) < 2:
                raise ValueError("values needs at least two entries; set a single one in its own section instead")
            return self
        if self.low is None or self.high is None or not math.isfinite(self.low) or not math.isfinite(self.high):
            raise ValueError("give low and high, or values")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0 (got {self.low:g})")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError("integer needs whole numbers as low and high")
        return self


class TuningSection(Section):
    """A search over mixtures and other fields. A trial is mix, train, evaluate on the validation questions."""

    sources: dict[str, SourceBounds] = Field(
        default_factory=lambda: {name: SourceBounds() for name in FORMS},
        description="Shares of the examples, which sum to one: both, caption, task, replay:NAME (one of "
        "mixture.replay). What is not named here gets none. Empty: the mixture is not searched.",
    )
    fields: dict[str, FieldRange] = Field(
        default_factory=dict, description="More fields to search by their dotted names, of training, mixture or models."
    )
    validation: list[TaskSection] = Field(
        default_factory=list, description="Questions that trials are compared on. Not those of evaluation."
    )
    metric: str = Field(
        default="average", description="'average' over question types, 'overall', or the name of one type."
    )
    mode: Literal["strict", "paper"] = Field(default="strict", description="Which kind of metric.")
    trials: Count = Field(default=24, description="Points that are tried, the fixed first ones included.")
    searcher: Literal["random", "tpe", "gp"] = Field(
        default="gp", description="After the start: at random, tree of Parzen estimators, or a Gaussian process."
    )
    start: Literal["sobol", "dirichlet"] = Field(
        default="sobol", description="Spread evenly over the space, or drawn uniformly."
    )
    start_trials: int = Field(
        default=6, ge=0, description="Of `start`, after the recipe of the paper and the corners of the mixture."
    )
    examples: Count | None = Field(
        default=None,
        description="Each trial (each of two stages) trains on so many, whatever training.epochs says. Absent: as "
        "configured.",
    )
    rungs: list[Count] = Field(
        default_factory=list,
        description="Examples seen, of two stages in the second, after which a trial is scored on its way, rising.",
    )
    stopping: Literal["none", "asha", "median"] = Field(
        default="none", description="Which trials end at a rung: the worst of those there, or those below the median."
    )
    reduction: int = Field(default=3, ge=2, description="asha: one in so many goes on at each rung.")
    repeats: Count = Field(default=1, description="Seeds per trial; its score is their mean.")
    warm_start: list[str] = Field(
        default_factory=list, description="Run folders of earlier searches over the same space, local or s3://."
    )
    concurrent: Count | None = Field(
        default=None, description="At most so many trials at a time; never more than the cluster can hold."
    )
    retries: int = Field(default=2, ge=0, description="A trial that dies is continued so many times.")
    budget_hours: Positive | None = Field(
        default=None, description="GPU-hours of all trials together, CPU-hours where nothing has a GPU."
    )
    proxy: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields by dotted names that make a trial cheaper than the full run: a smaller models.base, "
        "training.lora. The ready configuration leaves them out.",
    )
    full_trials: int = Field(
        default=0, ge=0, description="Points tried again without `proxy` and `examples`: how far do the ranks agree?"
    )

    @model_validator(mode="after")
    def _mixtures(self) -> TuningSection:
        for name in self.sources:
            if name not in FORMS and not name.startswith(REPLAY):
                raise ValueError(f"tuning.sources: '{name}' is none of {', '.join(FORMS)} or {REPLAY}NAME")
        if len(self.sources) == 1 or len(self.sources) > MOST_SOURCES:
            raise ValueError(f"tuning.sources: give none, or 2 to {MOST_SOURCES}")
        if not self.sources and not self.fields:
            raise ValueError("tuning: sources and fields are both empty, so there is nothing to search")
        if self.sources:
            low, high = (sum(getattr(one, end) for one in self.sources.values()) for end in ("low", "high"))
            if low > 1 + 1e-9 or high < 1 - 1e-9:
                raise ValueError(
                    f"tuning.sources: shares sum to one, but these bounds allow sums from {low:g} to {high:g}: "
                    f"{'lower some low' if low > 1 else 'raise some high'}"
                )
            self._domain()
        return self

    def _domain(self) -> None:
        """The run's own records keep a share. The most that replay can take is 1 less what the forms must have."""
        replay = sum(bounds.high for name, bounds in self.sources.items() if name.startswith(REPLAY))
        forms = sum(bounds.low for name, bounds in self.sources.items() if name in FORMS)
        if min(replay, 1 - forms) > 1 - LEAST_DOMAIN + 1e-9:
            raise ValueError(
                f"tuning.sources: replay could take all of the mixture; give {REPLAY}NAME a high that leaves "
                f"{LEAST_DOMAIN:.0%} for the run's own records"
            )

    @model_validator(mode="after")
    def _ways(self) -> TuningSection:
        if self.rungs != sorted(set(self.rungs)):
            raise ValueError(f"tuning.rungs: {self.rungs} must rise")
        if self.rungs and self.examples is None:
            raise ValueError("tuning.rungs: rungs are counted in examples: set tuning.examples, too")
        if self.rungs and self.examples is not None and self.rungs[-1] >= self.examples:
            raise ValueError(f"tuning.rungs: the last ({self.rungs[-1]}) must be below tuning.examples")
        if self.stopping != "none" and not self.rungs:
            raise ValueError(f"tuning.stopping: {self.stopping} needs tuning.rungs, where trials are compared")
        if self.repeats > 1 and self.rungs:
            raise ValueError("tuning.repeats: a trial of several seeds has no rungs: leave one of the two out")
        if self.examples is not None and {"training.epochs", "training.max_steps"} & {*self.fields, *self.proxy}:
            raise ValueError("tuning.examples: says how long a trial trains: leave training.epochs and max_steps out")
        if self.full_trials and not self.proxy and self.examples is None:
            raise ValueError("tuning.full_trials: without proxy and examples every trial is a full one already")
        names = [task.name for task in self.validation]
        if len(set(names)) < len(names):
            raise ValueError("tuning.validation: two tasks have the same name")
        return self
