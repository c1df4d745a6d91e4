"""The section of the training stage: batches, optimizer, parts of the model, adapters, checkpoints.

Apart from config.py because it is the second largest section; settings that contradict each other are refused here.
Those that need to know the model are refused by the stage before it starts Ray.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from adamllm_ray.config_engine import Count, Positive, Section, Share, Weight


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning (merged at export)."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Share = 0.0
    targets: list[str] = Field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])


class PartSection(Section):
    """One part of the model (language model, projector, vision tower)."""

    train: bool = True
    learning_rate: Positive | None = Field(default=None, description="The section's learning_rate if absent.")
    weight_decay: Weight | None = None


class TrainingSection(Section):
    """Post-training with DeepSpeed under Ray Train (paper section 3.2, table 10)."""

    workers: Count = 1
    gpus_per_worker: int = Field(default=0, ge=0)
    cpus_per_worker: Positive = 1.0
    data_workers: int = Field(
        default=0,
        ge=0,
        description="Processes per worker that decode images and make batches, one CPU each; 0: its own thread.",
    )
    epochs: Count = 1
    max_steps: Count | None = Field(default=None, description="Stop after this many optimizer steps.")
    global_batch: Count = Field(default=128, description="Examples per optimizer step, over all workers.")
    micro_batch: Count = Field(default=4, description="Examples per worker and forward pass.")
    token_budget: Count | None = Field(
        default=None,
        description="Tokens per worker and forward pass, image tokens included; takes the place of micro_batch.",
    )
    packing: bool = Field(
        default=False,
        description="Join the examples of a forward pass into one sequence, unpadded; needs token_budget.",
    )
    max_length: Count = Field(default=6144, description="Tokens, image tokens included; longer examples get a verdict.")
    learning_rate: Positive = 2e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Share = 0.03
    min_lr_share: Share = 0.0
    weight_decay: Weight = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: Positive = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 2
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="More DeepSpeed keys (offload, ...), merged last."
    )
    language_model: PartSection = PartSection()
    projector: PartSection = PartSection()
    vision_tower: PartSection = PartSection()
    lora: LoraSection | None = None
    checkpoint_every: Count = Field(default=100, description="Optimizer steps.")
    keep_checkpoints: int = Field(default=2, ge=2, description="At least 2: the newest may be half written.")
    max_failures: int = Field(default=3, ge=0, description="Worker-group restarts before the run gives up.")

    @model_validator(mode="after")
    def _batches(self) -> TrainingSection:
        if self.packing and self.token_budget is None:
            raise ValueError("training: packing needs token_budget, the tokens of a packed sequence (8192, say)")
        if self.token_budget is not None and self.token_budget < self.max_length:
            raise ValueError(
                f"training: token_budget ({self.token_budget}) is below max_length ({self.max_length}), so one long "
                "example would not fit: raise token_budget or lower max_length"
            )
        if self.token_budget is None and self.global_batch % (self.micro_batch * self.workers):
            raise ValueError(
                f"training: global_batch ({self.global_batch}) must be a multiple of micro_batch x workers "
                f"({self.micro_batch} x {self.workers})"
            )
        return self
