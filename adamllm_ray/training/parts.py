"""What trains and how fast: freezing, LoRA, parameter groups, and the table that says so before the first step.

    parts = prepare_parts(model, section)
    StepLoop(model, section, groups=parts.groups, steps=...)
    print(parts_table(parts.rows))

A part of the model that is to be trained but has no trainable parameter is an error: names of modules change
between versions of transformers, and a run that trains nothing looks like one that learns slowly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from adamllm_ray.errors import ModelError
from adamllm_ray.models.families import PARTS, Family, Part, family_of

if TYPE_CHECKING:
    from adamllm_ray.config import LoraSection, PartSection, TrainingSection


@dataclass(frozen=True, slots=True)
class PartRow:
    """One line of the table: parameters are counted in scalars."""

    part: Part
    parameters: int
    trainable: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class Parts:
    """Torch parameter groups for the optimizer, and the table."""

    groups: list[dict[str, Any]]
    rows: list[PartRow]


def prepare_parts(model: torch.nn.Module, section: TrainingSection) -> Parts:
    """Freeze what is not to train, attach LoRA adapters if configured, and group the rest.

    With LoRA the language model's own weights are frozen and adapters are added to its ``lora.targets``; projector
    and vision tower follow their own ``train`` switches as without it.

    Raises:
        ModelError: an unknown family, or a part that is to be trained has nothing to train.
    """
    family = family_of(model.config.model_type)  # type: ignore[union-attr, arg-type]
    if section.lora is not None and section.language_model.train:
        attach_lora(model, section.lora)
    members: dict[Part, list[tuple[str, torch.nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = family.part_of(name)
        adapted = part == "language_model" and section.lora is not None
        parameter.requires_grad_(_part(section, part).train and (not adapted or "lora_" in name))
        members[part].append((name, parameter))
    rows = [_row(part, members[part], section) for part in PARTS]
    for row in rows:
        if _part(section, row.part).train and not row.trainable:
            raise ModelError(
                f"training.{row.part} is to be trained but has no trainable parameter in this "
                f"'{model.config.model_type}' model (set train: false for it, or check lora.targets)"  # type: ignore[union-attr]
            )
    if not any(row.trainable for row in rows):
        raise ModelError("nothing is to be trained: training.language_model, projector and vision_tower are all off")
    return Parts([group for row in rows for group in _groups(row, members[row.part])], rows)


def attach_lora(model: torch.nn.Module, lora: LoraSection) -> Any:
    """Put adapters into the language model's layers, in place. Returns peft's tuner, which can merge them again.

    Raises:
        ModelError: no layer of the language model is called like one of ``lora.targets``.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    family = family_of(model.config.model_type)  # type: ignore[union-attr, arg-type]
    names = [name for name, module in model.named_modules() if _is_target(name, module, family, lora.targets)]
    if not names:
        raise ModelError(f"lora.targets {lora.targets} match no linear layer of the language model")
    pattern = "|".join(re.escape(name) for name in names)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=f"({pattern})")
    return LoraModel(model, config, "default")


def parts_table(rows: list[PartRow]) -> str:
    """The table as text."""
    lines = [f"{'part':<16}{'parameters':>16}{'trainable':>16}{'learning rate':>16}{'weight decay':>14}"]
    for row in rows:
        rate = f"{row.learning_rate:.3g}" if row.trainable else "frozen"
        lines.append(f"{row.part:<16}{row.parameters:>16,}{row.trainable:>16,}{rate:>16}{row.weight_decay:>14g}")
    return "\n".join(lines)


def _is_target(name: str, module: torch.nn.Module, family: Family, targets: list[str]) -> bool:
    linear = isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in targets
    return linear and family.part_of(f"{name}.weight") == "language_model"


def _part(section: TrainingSection, part: Part) -> PartSection:
    sections = {
        "language_model": section.language_model,
        "projector": section.projector,
        "vision_tower": section.vision_tower,
    }
    return sections[part]


def _row(part: Part, members: list[tuple[str, torch.nn.Parameter]], section: TrainingSection) -> PartRow:
    own = _part(section, part)
    return PartRow(
        part,
        sum(parameter.numel() for _, parameter in members),
        sum(parameter.numel() for _, parameter in members if parameter.requires_grad),
        section.learning_rate if own.learning_rate is None else own.learning_rate,
        section.weight_decay if own.weight_decay is None else own.weight_decay,
    )


def _groups(row: PartRow, members: list[tuple[str, torch.nn.Parameter]]) -> list[dict[str, Any]]:
    """One group for matrices and one without decay for vectors (norms, biases); empty ones left out."""
    training = [parameter for _, parameter in members if parameter.requires_grad]
    matrices = [parameter for parameter in training if parameter.dim() > 1]
    vectors = [parameter for parameter in training if parameter.dim() <= 1]
    groups = [(matrices, row.weight_decay), (vectors, 0.0)] if row.weight_decay else [(training, 0.0)]
    return [{"params": params, "lr": row.learning_rate, "weight_decay": decay} for params, decay in groups if params]
