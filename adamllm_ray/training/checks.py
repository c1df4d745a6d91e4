"""Settings that this model cannot follow, refused by the driver before Ray starts.

    rows = check_training(config.training, folder)      # seconds, also for a model of many billions

The model is put together from its config.json on torch's meta device: names and shapes of all layers, no weights. What
needs no model is refused by `config.training` when the configuration is read. The table of parts that comes out is
printed by the driver, and each worker compares its own with it.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from adamllm_ray.errors import ConfigError, ModelError
from adamllm_ray.models.families import family_of
from adamllm_ray.models.lean import lean_transformers
from adamllm_ray.training.engines import engine_config
from adamllm_ray.training.parts import PartRow, prepare_parts

if TYPE_CHECKING:
    from adamllm_ray.config import TrainingSection


def check_training(section: TrainingSection, folder: str) -> list[PartRow]:
    """The table of parts that the workers will have.

    Args:
        folder: of the base model, on this machine.

    Raises:
        ConfigError: naming the field and the fix.
        ModelError: a model that cannot be trained here.
    """
    model = outline(folder)
    _packing(section, model)
    _four_bits(section)
    rows = prepare_parts(model, section).rows
    _sharding(section, model)
    return rows


def outline(folder: str) -> Any:
    """A model with the layers of the one in ``folder`` and no weights. Raises ModelError for a bad config.json."""
    lean_transformers()
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from adamllm_ray.models.checkpoint import quiet_transformers

    with quiet_transformers(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            family_of(config.model_type)
            return AutoModelForImageTextToText.from_config(config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"no model can be made of {folder}/config.json: {error}") from error


def _packing(section: TrainingSection, model: Any) -> None:
    if section.packing and model.config.model_type == "mllama":
        raise ConfigError(
            "training.packing: Mllama looks at images by cross-attention, which examples in one sequence would share: "
            "set packing to false (token_budget alone works)"
        )


def _four_bits(section: TrainingSection) -> None:
    if section.lora is None or not section.lora.base_bits:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training.lora.base_bits: 4 needs bitsandbytes, which is not installed: `uv pip install bitsandbytes` in "
            "the image of the cluster, or leave base_bits out"
        )


def _sharding(section: TrainingSection, model: Any) -> None:
    """ZeRO-3 leaves small parameters whole: refuse it where that is all of them. Raises ConfigError."""
    if section.zero_stage < 3:
        return
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        zero = DeepSpeedZeroConfig(**engine_config(section, section.workers)["zero_optimization"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"training.deepspeed.zero_optimization.{key}: {first['msg']}") from None
    whole, sizes = 0, [parameter.numel() for parameter in model.parameters()]
    for size in sizes:  # as DeepSpeedZeRoOffload.mark_persistent_parameters (0.19.8)
        if size + whole <= zero.model_persistence_threshold and size <= zero.param_persistence_threshold:
            whole += size
    if whole == sum(sizes):
        raise ConfigError(
            f"training.zero_stage: 3 would shard nothing of this model: its largest parameter has {max(sizes):,} "
            f"elements, and DeepSpeed keeps those of up to {zero.param_persistence_threshold:,} whole on every worker. "
            "Set zero_stage to 2, or training.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
        )
