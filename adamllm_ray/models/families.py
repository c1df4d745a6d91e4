"""Where the parts of a model family are: language model, projector, vision tower.

Loading, prompts and image tokens need no adapter (transformers' auto classes, the processor and `ChatFormat` know
them). What is left is which parameters belong to which part, so that each can be frozen or given its own learning
rate. A family is one entry of ``FAMILIES``, keyed by ``model_type`` of its config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from adamllm_ray.errors import ModelError

Part = Literal["language_model", "projector", "vision_tower"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class Family:
    """Prefixes of parameter names (as ``model.named_parameters()`` gives them) of each part, most special first."""

    projector: tuple[str, ...]
    vision_tower: tuple[str, ...]
    language_model: tuple[str, ...] = ("model.language_model.", "lm_head.")

    def find(self, name: str) -> Part | None:
        """The part of a parameter, or of a module whose name ends in a dot; None for what is above parts."""
        if name.startswith(self.projector):
            return "projector"
        if name.startswith(self.vision_tower):
            return "vision_tower"
        return "language_model" if name.startswith(self.language_model) else None

    def part_of(self, parameter: str) -> Part:
        """The part a parameter belongs to. Raises ModelError for one that no prefix covers."""
        part = self.find(parameter)
        if part is None:
            raise ModelError(
                f"parameter {parameter} belongs to no known part; adamllm_ray/models/families.py lists them"
            )
        return part


_LLAVA = Family(
    projector=("model.multi_modal_projector.", "model.image_newline"), vision_tower=("model.vision_tower.",)
)
_QWEN = Family(projector=("model.visual.merger.",), vision_tower=("model.visual.",))

_IDEFICS = Family(
    projector=("model.connector.",),
    vision_tower=("model.vision_model.",),
    language_model=("model.text_model.", "lm_head."),
)

FAMILIES: dict[str, Family] = {
    "llava_next": _LLAVA,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "idefics3": _IDEFICS,  # SmolVLM 1 is one of these
    "smolvlm": _IDEFICS,
    "mllama": Family(projector=("model.multi_modal_projector.",), vision_tower=("model.vision_model.",)),
}


def family_of(model_type: str) -> Family:
    """The family of a config's ``model_type``. Raises ModelError naming the known ones."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise ModelError(
            f"models of type '{model_type}' cannot be trained yet: known are {', '.join(sorted(FAMILIES))}. "
            "A new one is a line in adamllm_ray/models/families.py."
        )
    return family
