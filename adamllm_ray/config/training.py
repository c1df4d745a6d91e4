"""The section of the training stage: batches, optimizer, parts of the model, adapters, checkpoints.

Settings that contradict each other are refused here; those that need to know the model, by the stage before it starts
Ray.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from adamllm_ray.config.fields import Count, Decay, Positive, Section, Share, Weight

# Keys of DeepSpeed's own configuration that would contradict fields of this section, and those fields.
_OURS = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "global_batch, micro_batch and workers",
    "gradient_clipping": "clip_norm",
    "scheduler": "schedule",
    "bf16": "precision",
    "fp16": "precision",
}


class LoraTargets(Section):
    """Linear layers that get adapters, part by part, by the last word of their names; 'all' means every one."""

    language_model: list[str] = Field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    projector: list[str] = Field(default_factory=list, description="Empty: trained in full, or frozen by its `train`.")
    vision_tower: list[str] = Field(default_factory=list, description="As for the projector.")


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning. The exported model has them merged in."""

    rank: Count = 16
    alpha: Positive = Field(default=32.0, description="Adapters are scaled by alpha / rank.")
    dropout: Share = 0.0
    targets: LoraTargets = LoraTargets()
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules (by the last words of their names) that train in full beside the adapters. What else "
        "their part holds is frozen.",
    )
    base_bits: Literal[4] | None = Field(
        default=None,
        description="4: hold the frozen weights of the language model in 4 bits (bitsandbytes, NF4). GPU only.",
    )
    export_adapter: bool = Field(
        default=False,
        description="Also write the adapter itself, in PEFT's layout, to train/adapter; needs everything that trains "
        "to be an adapter or in modules_to_save.",
    )


class PartSection(Section):
    """One part of the model (language model, projector, vision tower)."""

    train: bool = Field(default=True, description="Off: frozen.")
    learning_rate: Positive | None = Field(default=None, description="The section's learning_rate if absent.")
    weight_decay: Weight | None = Field(default=None, description="The section's weight_decay if absent.")


class LayersSection(PartSection):
    """A part that is a stack of layers."""

    gradient_checkpointing: bool = Field(
        default=False, description="Keep only the inputs of its layers and compute the rest again: memory for time."
    )


class TwoStageSection(Section):
    """The first of two stages, where ``recipe`` asks for two (paper section 3.2)."""

    projector_only: bool | None = Field(
        default=None, description="Captions train the projector alone; absent: yes for LLaVA models, no for others."
    )
    projector_learning_rate: Positive = Field(default=2e-3, description="Of a projector that trains alone.")
    captions_again: bool = Field(
        default=False, description="The second stage has the whole mixture, not just the tasks."
    )


class TrainingSection(Section):
    """Post-training with DeepSpeed under Ray Train (paper section 3.2, table 10)."""

    objective: Literal["assistant", "synthesizer"] = Field(
        default="assistant",
        description="assistant: loss on answers and their end of turn. synthesizer: this run tunes a synthesizer on "
        "its seed data, with loss on everything after the caption and a final end of text; without the mixture.",
    )
    recipe: Literal["single_stage", "two_stage"] = Field(
        default="single_stage",
        description="single_stage: captions and tasks together, the paper's. two_stage: captions first, then tasks.",
    )
    two_stage: TwoStageSection = TwoStageSection()

    workers: Count = 1
    gpus_per_worker: int = Field(default=0, ge=0, description="0 or 1: `workers` says how many GPUs train.")
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
    compile: bool = Field(
        default=False,
        description="torch.compile for each layer: fewer passes over memory, a minute more at the start; "
        "zero_stage 0 to 2.",
    )
    learning_rate: Positive = 2e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Share = 0.03
    min_lr_share: Share = 0.0
    weight_decay: Weight = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    clip_norm: Positive = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="More DeepSpeed keys (offload, ...), merged last."
    )
    language_model: LayersSection = LayersSection()
    projector: PartSection = PartSection()
    vision_tower: LayersSection = LayersSection()
    lora: LoraSection | None = None
    checkpoint_every: Count = Field(default=100, description="Optimizer steps.")
    keep_checkpoints: int = Field(default=2, ge=2, description="At least 2: the newest may be half written.")
    max_failures: int = Field(default=3, ge=0, description="Worker-group restarts before the run gives up.")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default=["tensorboard"],
        description="Where each step's figures go; wandb and mlflow are extras, and take keys from the environment.",
    )
    peak_tflops: Positive | None = Field(
        default=None, description="Dense bf16 TFLOP/s of a worker's device, for MFU; known GPUs if absent."
    )

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

    @model_validator(mode="after")
    def _method(self) -> TrainingSection:
        if self.recipe == "two_stage" and self.objective == "synthesizer":
            raise ValueError("training: recipe=two_stage is for post-training; a synthesizer is tuned in one stage")
        if self.recipe == "two_stage" and self.two_stage.projector_only and not self.projector.train:
            raise ValueError(
                "training: two_stage.projector_only=true with a frozen projector would train nothing: set "
                "projector.train=true"
            )
        return self

    @model_validator(mode="after")
    def _engine(self) -> TrainingSection:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "training: compile=true does not go with zero_stage=3, which fetches weights between the operations of "
                "a layer: set zero_stage to 0, 1 or 2, or compile=false"
            )
        owned = [f"deepspeed.{key}: set {field} instead" for key, field in _OURS.items() if key in self.deepspeed]
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict) or "stage" in zero:
            owned.append("deepspeed.zero_optimization.stage: set zero_stage instead")
        if owned:
            raise ValueError(f"training: {'; '.join(owned)}")
        return self

    @model_validator(mode="after")
    def _parts(self) -> TrainingSection:
        if self.gpus_per_worker > 1:
            raise ValueError(
                f"training: gpus_per_worker is 0 or 1, a worker trains on one GPU: for {self.gpus_per_worker} GPUs set "
                f"workers={self.workers * self.gpus_per_worker} and gpus_per_worker=1"
            )
        if not any(part.train for part in (self.language_model, self.projector, self.vision_tower)):
            raise ValueError(
                "training: language_model, projector and vision_tower are all frozen, so nothing would train: "
                "set train: true for one of them"
            )
        if self.lora is not None:
            self._adapters(self.lora)
        return self

    def _adapters(self, lora: LoraSection) -> None:
        """Refuse adapters that contradict the rest of the section."""
        for name, part in (("projector", self.projector), ("vision_tower", self.vision_tower)):
            if getattr(lora.targets, name) and not part.train:
                raise ValueError(
                    f"training: lora.targets.{name} asks for adapters in a frozen part: set {name}.train=true or leave "
                    "its targets out"
                )
        if lora.base_bits and self.zero_stage == 3:
            raise ValueError("training: lora.base_bits=4 cannot be sharded: set zero_stage to 0, 1 or 2")
        if lora.base_bits and not self.gpus_per_worker:
            raise ValueError("training: lora.base_bits=4 needs a GPU: set gpus_per_worker=1, or leave base_bits out")
