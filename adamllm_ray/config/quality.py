"""The sections of what is made of a finished run: the judging of its data, the report, the published data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from adamllm_ray.config.evaluation import TaskSection
from adamllm_ray.config.fields import Count, Section, Weight

ContaminationKind = Literal["image", "near_image", "question", "near_question", "pair"]


class ContaminationSection(Section):
    """Training data that are also in an evaluation set: found, reported and, if asked for, left out of training."""

    against: list[TaskSection] = Field(
        default_factory=list,
        description="More sets to compare with, written as in evaluation.tasks: benchmarks that are asked later.",
    )
    near_images: int | None = Field(
        default=4,
        ge=0,
        le=7,
        description="Bits of the 64-bit perceptual hash that may differ. Exact copies only if null.",
    )
    near_questions: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=0.8,
        description="Words and word pairs that two questions share (Jaccard similarity). Equal ones only if null.",
    )
    exclude: list[ContaminationKind] = Field(
        default_factory=list,
        description="Kinds of match for which a record does not train; it gets the verdict 'contaminated'.",
    )


class ReportSection(Section):
    """The page that `adamllm report` writes."""

    gallery: Count = Field(default=200, description="Records shown: half drawn by hash, the best and the worst.")
    thumbnails: Literal["inline", "presigned", "none"] = Field(
        default="inline",
        description="inline: in the page, which then loads nothing. presigned: beside it on S3, under addresses that "
        "expire (run.output must be s3://). none: no pictures.",
    )
    presigned_hours: Annotated[int, Field(gt=0, le=168)] = Field(
        default=168, description="How long the addresses of pictures work; S3 allows a week."
    )
    labels: str | None = Field(
        default=None,
        description='JSONL with {"id": record id, "right": true or false}: tasks that somebody looked at, to measure '
        "the judge against. The pocket domain knows its own.",
    )
    price_per_hour: Weight | None = Field(
        default=None, description="What the machines of this run cost per hour together, in any currency."
    )
    ablations: dict[str, str] = Field(
        default_factory=dict,
        description="Name -> run folder of other runs with the same evaluation task, as more columns of the scores.",
    )


class DataLicence(Section):
    """One source of images and captions, as the data set card names it."""

    name: str
    licence: str = "not stated"
    url: str | None = None


class PublishSection(Section):
    """What `adamllm publish` cannot know: where the data come from and what may be done with them."""

    title: str | None = Field(default=None, description="Of the data set; run.name if absent.")
    license: str = Field(
        default="other",
        pattern=r"^[a-z0-9.\-]{1,40}$",
        description="Licence of the data set, by the hub's short names.",
    )
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$", description="Of captions and tasks, by ISO 639.")
    sources: list[DataLicence] = Field(default_factory=list, description="Sources of images and captions.")
