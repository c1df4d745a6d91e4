"""The section of the mixture: how much of what the model is trained on."""

from __future__ import annotations

from pydantic import Field, model_validator

from adamllm_ray.config.fields import Section, Share, Weight


class ReplaySource(Section):
    """A dataset outside the run that is mixed in, in the ShareGPT layout."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$",
        description="Its kind of example is called replay:NAME; a file too.",
    )
    path: str
    image_folder: str | None = None
    weight: Weight = Field(description="Examples of this source per domain example.")


class MixtureSection(Section):
    """What the model is trained on: one example per record, drawn by hash of (seed, epoch, id).

    A record with a kept task becomes `both` (caption and task as one conversation, the paper's single stage),
    `caption` or `task`, with probabilities proportional to these weights. A record without one is caption only.
    """

    both: Weight = 1.0
    caption: Weight = 0.0
    task: Weight = 0.0
    untasked: Share = Field(
        default=1.0, description="Share of the records without a kept task that train as caption only."
    )
    threshold: Share | None = Field(
        default=None,
        description="Train on tasks with P(Yes) of at least this, whatever the judge's own rule made of them; 0: on "
        "all that were judged. Absent: on the kept ones.",
    )
    caption_first: Share = Field(
        default=0.5, description="How often the caption comes before the task in `both`; drawn by hash."
    )
    seed_tasks: Weight = Field(
        default=0.0,
        description="Examples of general tasks, from this run's seed data, per domain example. The judge has not seen "
        "them.",
    )
    replay: list[ReplaySource] = Field(default_factory=list)
    tolerance: Share = Field(default=0.05, description="Allowed distance between requested and realised shares.")

    @model_validator(mode="after")
    def _something(self) -> MixtureSection:
        if self.both + self.caption + self.task <= 0:
            raise ValueError("mixture: at least one of both, caption, task must be above 0")
        return self
