"""The sections of task synthesis and of the consistency filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from adamllm_ray.config.engine import EngineSection
from adamllm_ray.config.fields import Count, Positive, Section, Share, Weight


class SynthesisSection(Section):
    """Task synthesis by the synthesizer VLM (paper section 3.1)."""

    engine: EngineSection = EngineSection()
    max_new_tokens: Count = 512
    temperature: Weight = Field(default=0.0, description="0 = greedy, the paper's setting.")
    rows_per_block: Count = Field(default=64, description="Unit of resume: a kill costs at most the blocks in flight.")
    max_failed_share: Share = 0.05
    candidates: Count = Field(
        default=1,
        description="Responses sampled per image, all judged; the kept one with the highest P(Yes) becomes the task.",
    )
    retry_temperature: Positive | None = Field(
        default=None, description="Ask once more at this temperature when no response of a row parses. Absent: do not."
    )
    protocol: Literal["chat", "llama3_official"] = Field(
        default="chat",
        description="chat: prompts by the model's own chat template. llama3_official: those that the released "
        "checkpoint (AdaptLLM/visual-instruction-synthesizer) was trained on, token for token.",
    )
    question_match: Literal["exact", "normalised"] = Field(
        default="exact",
        description="When a question under both hints is one question. exact: the same characters, the paper's rule. "
        "normalised: whatever case, white space and punctuation.",
    )
    tasks_per_image: Count = Field(
        default=1, description="Tasks kept per image, each judged; the paper throws away all but the first."
    )
    cut_responses: Literal["refuse", "use"] = Field(
        default="refuse",
        description="Of a response that the token limit cut. refuse: nothing. use: what was whole before, as the "
        "paper's code does.",
    )
    stall_minutes: Positive = Field(
        default=30.0, description="Stop when nothing moves for so long; must be longer than a replica takes to start."
    )

    @property
    def attempts_kept(self) -> bool:
        """Whether the `attempts` column is filled: a row may have more than one response, or task."""
        return self.candidates > 1 or self.tasks_per_image > 1 or self.retry_temperature is not None

    @model_validator(mode="after")
    def _sampling(self) -> SynthesisSection:
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError(
                "synthesis: candidates above 1 need a temperature above 0, or all of them are the same; "
                "for example synthesis.temperature=0.7"
            )
        if self.retry_temperature is not None and self.retry_temperature <= self.temperature:
            raise ValueError(
                f"synthesis: retry_temperature ({self.retry_temperature}) must be above temperature "
                f"({self.temperature}); leave it out for no second try"
            )
        return self


class JudgeSection(Section):
    """Consistency filter (paper section 3.1.2)."""

    engine: EngineSection = EngineSection()
    keep: Literal["threshold", "exact"] = Field(
        default="threshold",
        description="threshold: keep a task when P(Yes) >= threshold. exact: when Yes is the most likely label, "
        "the paper's rule.",
    )
    threshold: Share = Field(
        default=0.5, description="Of keep: threshold. P(Yes) is among Yes / No / Open; all three are stored."
    )
    few_shot: bool = Field(
        default=True, description="Put six worked examples before each question; off for a judge tuned for it."
    )
