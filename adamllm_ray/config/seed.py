"""The section of the seed data: the three files that a synthesizer is tuned on, and how they are joined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from adamllm_ray.config.data import S3Section
from adamllm_ray.config.fields import Section, Share
from adamllm_ray.config.training import TrainingSection

FILES = ("captions", "precise", "informative")


class SeedSection(Section):
    """Seed data (paper section 3.1.1): captions, precise answers and informative answers about the same images.

    Three JSON or JSONL files, local or on S3, as VisionFLAN and ALLaVA-4V have them: records with ``image`` and
    ``caption`` or ``conversations`` (`docs/synthesizer.md`).
    """

    captions: str = Field(default="", description="A caption per image. Empty: this run has no seed data.")
    precise: str = Field(default="", description="Questions with short, exact answers (VisionFLAN).")
    informative: str = Field(default="", description="Questions with explaining answers (ALLaVA-Instruct-VFLAN).")
    image_folder: str | None = Field(default=None, description="Of all three files; the captions' folder if absent.")
    s3: S3Section = S3Section()
    join: Literal["question", "image"] = Field(
        default="question",
        description="question: only questions that have both answers, the two next to each other. image: everything "
        "asked about an image, shuffled, as the paper's code does it.",
    )
    blank_share: Share = Field(
        default=0.1, description="Share of images that a white one replaces, so that captions are read (appendix F)."
    )
    dev_share: Share = Field(default=0.1, description="Share kept out of training, to measure a synthesizer on.")
    compat: Literal["official"] | None = Field(
        default=None,
        description="official: the order of turns, the blank images and the split of the paper's code, which draws "
        "them by position (join, blank_share and dev_share are then its own).",
    )
    max_failed_share: Share = Field(default=0.05, description="Stop when more than this share of the rows fails.")

    base: str = Field(
        default="pocket:base",
        description="The VLM that is tuned into this run's synthesizer (models.synthesizer: tuned).",
    )
    training: TrainingSection = Field(
        default=TrainingSection(), description="How it is tuned; the objective is the synthesizer's whatever it says."
    )

    @property
    def given(self) -> bool:
        """Whether the run has seed data."""
        return bool(self.captions)

    @model_validator(mode="after")
    def _whole(self) -> SeedSection:
        missing = [name for name in FILES if not getattr(self, name)]
        if 0 < len(missing) < len(FILES):
            raise ValueError(f"seed: {' and '.join(missing)} missing: seed data are three files, name all of them")
        return self
