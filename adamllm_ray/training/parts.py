"""What trains and how fast: freezing, LoRA, parameter groups, and the table that says so before the first step.

    parts = prepare_parts(model, section)
    StepLoop(model, section, groups=parts.groups, steps=...)
    print(parts_table(parts.rows))

A part of the model that is to be trained but has no trainable parameter is an error: names of modules change
between versions of transformers, and a run that trains nothing looks like one that learns slowly. The driver draws the
same table from a model without weights (`checks`), and a worker whose table is another one stops.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from adamllm_ray.errors import ConfigError, ModelError
from adamllm_ray.models.families import PARTS, Family, Part, family_of
from adamllm_ray.training.adapters import adapted_layers, attach_lora, export_whole, saved_modules
from adamllm_ray.training.attention import attend_in_blocks, attend_to_images

if TYPE_CHECKING:
    from adamllm_ray.config import PartSection, TrainingSection


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


Members = list[tuple[str, torch.nn.Parameter]]


def prepare_parts(model: Any, section: TrainingSection) -> Parts:
    """Freeze what is not to train, set up adapters, gradient checkpointing and attention, and group the rest.

    A part with adapters or saved modules trains only those; any other part trains in full or not at all, as its
    ``train`` says.

    Raises:
        ModelError: an unknown family, or a part that is to be trained has nothing to train.
        ConfigError: a setting of ``section`` that this model cannot follow.
    """
    family = family_of(model.config.model_type)
    saved = saved_modules(model, section)
    adapted = {part for part in PARTS if adapted_layers(model, section, part)} | {_part(family, name) for name in saved}
    export_whole(model, section, [part for part in PARTS if getattr(section, part).train and part not in adapted])
    checkpoint_layers(model, section)
    if section.packing:
        attend_in_blocks(model)
    attend_to_images(model)
    attach_lora(model, section)
    if section.compile:
        compile_layers(model)
    members = _members(model, section, family, adapted, tuple(f"{name}." for name in saved))
    rows = [_row(part, members[part], section) for part in PARTS]
    for row in rows:
        if _section(section, row.part).train and not row.trainable:
            raise ModelError(
                f"training.{row.part} is to be trained but has no trainable parameter in this "
                f"'{model.config.model_type}' model (set train: false for it)"
            )
    return Parts([group for row in rows for group in _groups(row, members[row.part])], rows)


def checkpoint_layers(model: Any, section: TrainingSection) -> None:
    """Switch on gradient checkpointing for the layers of the parts that ask for it.

    Not the reentrant kind: that one needs inputs with a gradient, and drops the gradients of a part whose inputs have
    none (adapters over a frozen embedding, the first layer of a tower).

    Raises:
        ConfigError: the part has no layers that can be checkpointed.
    """
    from torch.utils.checkpoint import checkpoint

    family = family_of(model.config.model_type)
    for part in ("language_model", "vision_tower"):
        if not getattr(section, part).gradient_checkpointing:
            continue
        layers = [layer for name, layer in layers_of(model) if family.find(f"{name}.") == part]
        if not layers or not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"training.{part}.gradient_checkpointing: transformers cannot checkpoint the {part} of a "
                f"'{model.config.model_type}' model; leave it off"
            )
        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def layers_of(model: Any) -> list[tuple[str, Any]]:
    """(name, layer) of all layers that transformers stacks, language model and tower."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [(name, one) for name, one in model.named_modules() if isinstance(one, GradientCheckpointingLayer)]


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile each layer, in place and at its first use, for sequences of any length.

    Layers of a kind are alike, so one compilation serves them all; names of parameters stay as they are.
    """
    for _, layer in layers_of(model):
        layer.compile(dynamic=True, backend=backend)


def same_parts(own: list[PartRow], drawn: list[dict[str, Any]]) -> None:
    """Compare a worker's table with the driver's (its rows as dictionaries). Raises ModelError where they differ."""
    for row, wanted in zip(own, drawn, strict=True):
        if asdict(row) != wanted:
            raise ModelError(
                f"a worker's model is not the one that the driver has seen: {asdict(row)} instead of {wanted}. Is the "
                "same model folder and the same version of transformers on every node?"
            )


def parts_table(rows: list[PartRow]) -> str:
    """The table as text."""
    lines = [f"{'part':<16}{'parameters':>16}{'trainable':>16}{'learning rate':>16}{'weight decay':>14}"]
    for row in rows:
        rate = f"{row.learning_rate:.3g}" if row.trainable else "frozen"
        lines.append(f"{row.part:<16}{row.parameters:>16,}{row.trainable:>16,}{rate:>16}{row.weight_decay:>14g}")
    return "\n".join(lines)


def _members(
    model: Any, section: TrainingSection, family: Family, adapted: set[Part], saved: tuple[str, ...]
) -> dict[Part, Members]:
    """Parameters by part, each with the right ``requires_grad``."""
    members: dict[Part, Members] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = family.part_of(name)
        whole = part not in adapted or ".lora_" in name or (bool(saved) and name.startswith(saved))
        parameter.requires_grad_(_section(section, part).train and whole)
        members[part].append((name, parameter))
    return members


def _part(family: Family, module: str) -> Part:
    return family.part_of(f"{module}.")


def _section(section: TrainingSection, part: Part) -> PartSection:
    own: PartSection = getattr(section, part)
    return own


def _row(part: Part, members: Members, section: TrainingSection) -> PartRow:
    own = _section(section, part)
    return PartRow(
        part,
        sum(_scalars(parameter) for _, parameter in members),
        sum(_scalars(parameter) for _, parameter in members if parameter.requires_grad),
        section.learning_rate if own.learning_rate is None else own.learning_rate,
        section.weight_decay if own.weight_decay is None else own.weight_decay,
    )


def _scalars(parameter: torch.nn.Parameter) -> int:
    """Scalars in a parameter; bitsandbytes packs two of four bits into a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def _groups(row: PartRow, members: Members) -> list[dict[str, Any]]:
    """One group for matrices and one without decay for vectors (norms, biases); empty ones left out."""
    training = [parameter for _, parameter in members if parameter.requires_grad]
    matrices = [parameter for parameter in training if parameter.dim() > 1]
    vectors = [parameter for parameter in training if parameter.dim() <= 1]
    groups = [(matrices, row.weight_decay), (vectors, 0.0)] if row.weight_decay else [(training, 0.0)]
    return [{"params": params, "lr": row.learning_rate, "weight_decay": decay} for params, decay in groups if params]
