"""LoRA by part of the model, through peft: which layers, putting adapters in, taking the adapter out again.

    tuner = attach_lora(model, section)          # before training, and again on the model that is exported
    ...
    model = tuner.merge_and_unload()

Layers are named by the last word of their names ("q_proj"), for each part apart, because the same word may occur in the
language model and in the vision tower. Modules of ``lora.modules_to_save`` are trained as they are: unlike peft, which
keeps a copy of them for the case that the adapter is switched off, nothing is wrapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adamllm_ray.errors import ConfigError
from adamllm_ray.models.families import PARTS, Family, Part, family_of

if TYPE_CHECKING:
    from adamllm_ray.config import LoraSection, TrainingSection

ALL = "all"
PEFT_PREFIX = "base_model.model."


def attach_lora(model: Any, section: TrainingSection) -> Any:
    """Put adapters into the layers of ``lora.targets``, in place. Returns peft's tuner, which can merge them again.

    None without LoRA. On a model on torch's meta device the adapters are there, too.

    Raises:
        ConfigError: a target matches no linear layer of its part, or no part takes adapters.
    """
    lora = section.lora
    if lora is None:
        return None
    from peft.tuners.lora import LoraModel

    names = _all_layers(model, section)
    if not names:
        raise ConfigError(
            "training.lora: no part takes adapters; name layers in training.lora.targets, or leave training.lora out"
        )
    on_meta = all(parameter.is_meta for parameter in model.parameters())
    return LoraModel(model, _peft_config(lora, names), "default", low_cpu_mem_usage=on_meta)


def adapted_layers(model: Any, section: TrainingSection, part: Part) -> list[str]:
    """Names of the linear layers of a part that take adapters; none in a frozen part.

    Raises:
        ConfigError: one of the part's targets matches nothing; says what its layers are called.
    """
    lora = section.lora
    if lora is None or not getattr(section, part).train:
        return []
    targets, family = getattr(lora.targets, part), family_of(model.config.model_type)
    linear = [name for name, module in model.named_modules() if _is_inner_linear(model, name, module, family, part)]
    words = {name.rpartition(".")[2] for name in linear}
    for target in targets:
        if target != ALL and target not in words:
            raise ConfigError(
                f"training.lora.targets.{part}: '{target}' matches no linear layer of this '{model.config.model_type}' "
                f"model's {part}; its layers are called {', '.join(sorted(words)) or '(there are none)'}"
            )
    return [name for name in linear if ALL in targets or name.rpartition(".")[2] in targets]


def saved_modules(model: Any, section: TrainingSection) -> list[str]:
    """Full names of the modules that ``lora.modules_to_save`` means.

    Raises:
        ConfigError: a name matches no module with parameters of its own, or one in a frozen part.
    """
    if section.lora is None:
        return []
    owners = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
    modules = [name for name, _ in model.named_modules() if any(f"{o}.".startswith(f"{name}.") for o in owners)]
    found: list[str] = []
    for wanted in section.lora.modules_to_save:
        matching = [name for name in modules if f".{name}".endswith(f".{wanted}")]
        if not matching:
            raise ConfigError(
                f"training.lora.modules_to_save: '{wanted}' matches no module of this '{model.config.model_type}' "
                "model that has weights of its own (tied weights belong to the embedding)"
            )
        found += matching
    family = family_of(model.config.model_type)
    for name in found:
        part = family.find(f"{name}.")
        if part is None or not getattr(section, part).train:
            raise ConfigError(
                f"training.lora.modules_to_save: {name} is {f'in {part}, which is frozen' if part else 'in no part'}; "
                f"{f'set training.{part}.train=true' if part else 'name a module inside one part'}"
            )
    return found


def export_whole(model: Any, section: TrainingSection, trained_in_full: list[Part]) -> None:
    """Refuse ``lora.export_adapter`` where the adapter alone would not be the trained model. Raises ConfigError."""
    if section.lora is not None and section.lora.export_adapter and trained_in_full:
        parts = " and ".join(trained_in_full)
        raise ConfigError(
            f"training.lora.export_adapter: {parts} would train in full, so an adapter alone is not the trained model: "
            f"give each a lora.targets or lora.modules_to_save of its own, or set its train to false (this model is a "
            f"'{model.config.model_type}')"
        )


def write_adapter(weights: dict[str, torch.Tensor], model: Any, section: TrainingSection, base: str, to: Path) -> None:
    """Write adapters and saved modules in PEFT's layout, for peft itself and, without saved modules, for vLLM.

    Args:
        weights: trained tensors by the model's own names, adapters included.
        model: one without adapters yet, on any device; only names are read.
        base: what the adapter is for, as text.
    """
    from safetensors.torch import save_file

    lora = section.lora
    if lora is None:
        raise ValueError("there is no adapter without training.lora")
    names, saved = _all_layers(model, section), saved_modules(model, section)
    inside = tuple(f"{name}." for name in saved)
    kept = {name: t for name, t in weights.items() if ".lora_" in name or (inside and name.startswith(inside))}
    to.mkdir(parents=True, exist_ok=True)
    config = _peft_config(lora, names)
    config.modules_to_save, config.base_model_name_or_path, config.inference_mode = saved or None, base, True
    config.save_pretrained(str(to))
    tensors = {PEFT_PREFIX + name.replace(".default.", "."): t.cpu().contiguous() for name, t in kept.items()}
    save_file(tensors, to / "adapter_model.safetensors", metadata={"format": "pt"})


def load_base(base: str, section: TrainingSection) -> Any:
    """The model that training starts from, as the section wants it: in its precision, or its layers in 4 bits."""
    from adamllm_ray.models.checkpoint import load_vlm, read_config

    packed = section.lora is not None and section.lora.base_bits is not None
    quantization = four_bits(read_config(base)["model_type"]) if packed else None
    return load_vlm(base, "bfloat16" if section.precision == "bf16" else "float32", quantization)[0]


def four_bits(model_type: str) -> Any:
    """transformers' quantization setting for ``lora.base_bits: 4``: the language model's layers in NF4, QLoRA's way.

    Never run by this project: it needs a CUDA GPU and bitsandbytes.
    """
    from transformers import BitsAndBytesConfig

    family = family_of(model_type)
    apart = [prefix.rstrip(".") for prefix in (*family.projector, *family.vision_tower)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=[*apart, "lm_head"],
    )


def _all_layers(model: Any, section: TrainingSection) -> list[str]:
    """Layers that take adapters, in all parts; what is inside a saved module trains in full instead."""
    inside = tuple(f"{name}." for name in saved_modules(model, section))
    names = [name for part in PARTS for name in adapted_layers(model, section, part)]
    return [name for name in names if not f"{name}.".startswith(inside)] if inside else names


def _peft_config(lora: LoraSection, names: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, task_type="CAUSAL_LM"
    )


def _is_inner_linear(model: Any, name: str, module: torch.nn.Module, family: Family, part: Part) -> bool:
    """A linear layer of this part; the one that writes logits is none, as in peft's own 'all-linear'."""
    return (
        isinstance(module, torch.nn.Linear)
        and module is not model.get_output_embeddings()
        and not name.endswith(".base_layer")
        and family.find(f"{name}.") == part
    )
