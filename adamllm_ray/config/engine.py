"""The section of one pool of engine replicas, which serves three stages: synthesis, judging, evaluation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from adamllm_ray.config.fields import Count, Positive, Section, Share, Weight


class EngineSection(Section):
    """One pool of vLLM replicas. The same fields serve a 1 M-parameter model on a laptop and an 8 B one on GPUs."""

    replicas: Count = Field(default=1, description="The most replicas of this pool.")
    min_replicas: Count | None = Field(
        default=None,
        description="The pool starts with this many and grows to `replicas` while work waits and the cluster has room. "
        "Absent: all `replicas` from the start.",
    )
    max_retries: int = Field(
        default=5,
        ge=0,
        description="Tries more for a batch whose replica died under it; then the job stops. Synthesis does not count "
        "deaths by a row that is found to be the cause, and needs one try to find it.",
    )
    gpus_per_replica: Weight = Field(
        default=0,
        description="0: vLLM's CPU build. A fraction: several replicas share a GPU. A whole number: tensor parallel "
        "size x pipeline_parallel.",
    )
    pipeline_parallel: Count = Field(
        default=1, description="Stages the layers are cut into; the stages of a replica may lie on several nodes."
    )
    cpus_per_replica: Positive = 1.0
    max_model_len: Count = Field(default=4096, description="Tokens; a model made for fewer positions gets fewer.")
    max_num_seqs: Count = Field(default=64, description="Rows decoded at the same time by one replica.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = Field(
        default=None, description="vLLM's name of a method, such as fp8; absent: what the model folder says."
    )
    lora: str | None = Field(
        default=None, description="LoRA adapter on top of the model: a folder with adapter_model.safetensors."
    )
    gpu_memory_utilization: Share = Field(
        default=0.9, description="Share of a GPU's memory for weights and cache of one replica."
    )
    kv_cache_gib: Positive = Field(default=1.0, description="Only used on CPU.")
    enforce_eager: bool = False
    extra: dict[str, Any] = Field(default_factory=dict, description="More vllm.AsyncEngineArgs, passed as they are.")

    @model_validator(mode="after")
    def _gpus(self) -> EngineSection:
        gpus, stages = self.gpus_per_replica, self.pipeline_parallel
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_replica ({gpus:g}) must be a whole number, or a fraction below 1")
        if gpus < 1 < stages or (gpus >= 1 and gpus % stages):
            raise ValueError(
                f"pipeline_parallel ({stages}) must divide gpus_per_replica ({gpus:g}): each stage gets as many GPUs; "
                f"set gpus_per_replica to {stages * max(1, round(gpus / stages))}"
            )
        if 0 < gpus < 1 and self.gpu_memory_utilization > gpus:
            raise ValueError(
                f"gpu_memory_utilization ({self.gpu_memory_utilization:g}) is more than this replica's share of a GPU "
                f"(gpus_per_replica {gpus:g}), so its neighbour would find no memory; set it to {0.9 * gpus:.2g}"
            )
        return self

    @property
    def tensor_parallel(self) -> int:
        """GPUs that share each layer; 1 without GPUs and for a fraction of one."""
        return max(1, round(self.gpus_per_replica) // self.pipeline_parallel)

    @property
    def slots(self) -> int:
        """Rows at the engine of one replica at the same time: every stage of a pipeline works on a batch of its own."""
        return self.max_num_seqs * self.pipeline_parallel

    @property
    def least_replicas(self) -> int:
        """Replicas that must run at the same time for the pool to work at all as configured."""
        return self.min_replicas or self.replicas

    @model_validator(mode="after")
    def _pool(self) -> EngineSection:
        if self.least_replicas > self.replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not be above replicas ({self.replicas})")
        return self
