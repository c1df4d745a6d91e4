"""Useful floating-point operations of a step, the vision tower's included, and what a GPU could do: MFU.

    meter = Meter.of(model, section)          # once, after freezing and LoRA, before DeepSpeed shards anything
    flops = meter.flops(batch)                # forward + backward of one micro-batch
    mfu = meter.share(flops, seconds * workers)

Counted as in the appendix B of PaLM (Chowdhery et al. 2022, arXiv 2204.02311), with two refinements:

* A matrix of ``in x out`` costs ``2 in out`` per row forward, ``2 in out`` backward for its weight if that trains
  (frozen weights and LoRA's base do not) and ``2 in out`` for its input if anything before it trains.
* Attention of width ``d`` over a sequence of ``n`` costs ``4 d n^2`` per layer forward (scores and values) and twice
  that backward if anything before it trains. The whole square is counted also where half of it is masked, as PaLM,
  nanoGPT and torchtitan do. A packed sequence counts as its examples' own squares.
* The vision tower runs on patches (and class tokens), the projector on what it merges them to, the language model on
  text and image tokens, the output matrix on labelled positions only.

Not counted: padding, fillers, what gradient checkpointing computes again, layers of the tower whose output is not
used, embedding look-ups, norms, activations. So it is MFU, not the utilisation of the hardware.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adamllm_ray.models.families import PARTS, Part, family_of

if TYPE_CHECKING:
    from adamllm_ray.config import TrainingSection
    from adamllm_ray.training.collate import Batch

# Dense bf16 TFLOP/s of a card, from NVIDIA's data sheets (half of a figure "with sparsity"); the first name that
# torch.cuda.get_device_name contains counts.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("B100", 1750.0),
    ("GH200", 989.4),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
)
_EXITS = ("o_proj", "out_proj", "proj", "dense")  # last matrix of an attention module, as transformers names it
_ENTRIES = ("q_proj", "qkv")
_BESIDE = re.compile(r"(.*\.)(q_proj|k_proj|v_proj|gate_proj|up_proj)(\.|$)")  # matrices that share their input
_FOREIGN_SHARE = 0.01  # of the parameters that may sit in matrices of a kind that is not known here


@dataclass(frozen=True, slots=True)
class FlopRates:
    """FLOPs, forward and backward, per unit of work of each kind.

    Attributes:
        patch: per patch, in the convolution that embeds it.
        tower: per row of the tower (patches and class tokens).
        tower_pairs: per squared length of a sequence that the tower attends over.
        window_pairs: the same in layers that attend within windows (Qwen2.5-VL).
        projector: per row of the projector.
        text: per token of the language model.
        text_pairs: per squared length of an example.
        label: per position that carries loss.
        patches_per_row: patches that become one row of the projector.
        class_tokens: rows of a tile that are no patches.
        config: the model's, for how images are cut.
    """

    patch: float
    tower: float
    tower_pairs: float
    window_pairs: float
    projector: float
    text: float
    text_pairs: float
    label: float
    patches_per_row: float
    class_tokens: int
    config: Any


@dataclass(frozen=True, slots=True)
class _Image:
    """An image as the tower sees it: patches, and lengths of the sequences it attends over."""

    patches: int
    sequences: list[int]
    windows: list[int]


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts a model's useful FLOPs, and knows what a worker's device could do in a second where that is known."""

    rates: FlopRates | None
    peak: float | None

    @classmethod
    def of(cls, model: nn.Module, section: TrainingSection) -> Meter:
        """For a model that is frozen and adapted, and not yet sharded."""
        return cls(flop_rates(model), peak_flops(section.peak_tflops))

    def flops(self, batch: Batch) -> float:
        """Useful FLOPs of a micro-batch; 0 for a model that cannot be counted."""
        return batch_flops(self.rates, batch) if self.rates is not None else 0.0

    def share(self, flops: float, device_seconds: float) -> float | None:
        """MFU: share of the devices' peak; None where either is not known."""
        return flops / (device_seconds * self.peak) if flops and self.peak and device_seconds else None


def peak_flops(override_tflops: float | None) -> float | None:
    """FLOP/s that a worker's device could do in bf16: the override, the table's, or None where neither knows."""
    if override_tflops is not None:
        return override_tflops * 1e12
    return known_peak(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def known_peak(device: str) -> float | None:
    """Dense bf16 FLOP/s of a card by the name that CUDA gives it; None for one that is not in the table."""
    return next((tflops * 1e12 for name, tflops in PEAK_TFLOPS if re.search(rf"\b{name}\b", device)), None)


def flop_rates(model: nn.Module) -> FlopRates | None:
    """The rates of a model as it is frozen and adapted now. None for one whose work is in no matrices known here."""
    config: Any = model.config
    members = _by_part(model)
    if members is None:
        return None
    kinds = ("patch", "tower", "tower_pairs", "window_pairs", "projector", "text", "text_pairs", "label")
    sums = dict.fromkeys(kinds, 0.0)
    for part, name, module, needed in _in_order(members, _used_layers(config)):
        kind, flops = _cost(name, module, part, needed, config)
        if kind:
            sums[kind] += flops
    return FlopRates(
        **sums, patches_per_row=_merging(members, config), class_tokens=_class_tokens(model), config=config
    )


def batch_flops(rates: FlopRates, batch: Batch) -> float:
    """Useful FLOPs, forward and backward, of one micro-batch."""
    lengths = _lengths(batch)
    own = lengths[: len(batch.ids)]
    if not own:
        return 0.0
    images = _images(batch.inputs, rates.config)
    images = images[: len(images) - (len(lengths) - len(own))]  # a filler with a blank image comes last
    patches = sum(image.patches for image in images)
    rows = sum(sum(image.sequences) for image in images)
    extra = rates.class_tokens * sum(len(image.sequences) for image in images)
    squares = sum((length + rates.class_tokens) ** 2 for image in images for length in image.sequences)
    return (
        rates.patch * patches
        + rates.tower * (rows + extra)
        + rates.tower_pairs * squares
        + rates.window_pairs * sum(length**2 for image in images for length in image.windows)
        + rates.projector * patches / rates.patches_per_row
        + rates.text * sum(own)
        + rates.text_pairs * sum(length**2 for length in own)
        + rates.label * batch.weight
    )


def _by_part(model: nn.Module) -> dict[Part, list[tuple[str, nn.Module]]] | None:
    """Modules with parameters of their own, and attention modules, of each part in the order of their definition."""
    family = family_of(model.config.model_type)  # type: ignore[union-attr, arg-type]
    members: dict[Part, list[tuple[str, nn.Module]]] = {part: [] for part in PARTS}
    foreign = 0
    for name, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        first = own[0][0] if own else next((inner for inner, _ in module.named_parameters()), None)
        if first is None or not (own or _exit(module) is not None):
            continue
        members[family.part_of(f"{name}.{first}" if name else first)].append((name, module))
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
            foreign += sum(parameter.numel() for _, parameter in own if parameter.dim() > 1)
    total = sum(parameter.numel() for parameter in model.parameters())
    return None if foreign > _FOREIGN_SHARE * total else members


def _in_order(
    members: dict[Part, list[tuple[str, nn.Module]]], used_layers: float
) -> Iterator[tuple[Part, str, nn.Module, bool]]:
    """(part, name, module, whether its input needs a gradient) in the order that an image goes through the model.

    An input needs one when something before it trains. Layers of the tower from ``used_layers`` on are left out.
    """
    below = False
    shared = ("", False)  # where the matrices are that have their input in common, and whether it needs a gradient
    for part in reversed(PARTS):  # vision tower, projector, language model
        for name, module in members[part]:
            if part == "vision_tower" and _layer(name) >= used_layers:
                continue
            beside = _BESIDE.match(name)
            if beside is not None and beside[1] != shared[0]:
                shared = (beside[1], below)
            yield part, name, module, below if beside is None or ".lora_B" in name else shared[1]
            below = below or any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _cost(name: str, module: nn.Module, part: Part, needed: bool, config: Any) -> tuple[str, float]:
    """(which rate a module adds to, how much); ('', 0) for one without matrix products."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):  # patches in, so no gradient goes further
        return "patch", 2.0 * module.weight.numel() * (1 + module.weight.requires_grad)
    if isinstance(module, nn.Linear):
        per_row = 2.0 * module.in_features * module.out_features * (1 + needed + module.weight.requires_grad)
        kind = "label" if name == "lm_head" else {"vision_tower": "tower", "language_model": "text"}.get(part, part)
        return kind, per_row
    width = _exit(module)
    if width is None:
        return "", 0.0
    trains = needed or any(parameter.requires_grad for parameter in module.parameters())
    kind = "text_pairs" if part == "language_model" else "tower_pairs"
    whole = getattr(_vision(config), "fullatt_block_indexes", None)
    if kind == "tower_pairs" and whole is not None and _layer(name) not in whole:
        kind = "window_pairs"
    return kind, 4.0 * width * (3 if trains else 1)


def _exit(module: nn.Module) -> int | None:
    """Width of the values that an attention module joins; None for a module of another kind."""
    children = dict(module.named_children())
    if not any(name in children for name in _ENTRIES):
        return None
    found = next((children[name] for name in _EXITS if name in children), None)
    return int(found.in_features) if found is not None else None  # type: ignore[arg-type]


def _layer(name: str) -> int:
    """The number of the layer that a module is in; -1 outside of layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found and ".merger." not in name else -1


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None)


def _feature_layers(config: Any) -> list[int]:
    chosen = getattr(config, "vision_feature_layer", None)
    return [-1] if chosen is None else [chosen] if isinstance(chosen, int) else list(chosen)


def _used_layers(config: Any) -> float:
    """How many of the tower's layers the projector's input depends on."""
    layers = getattr(_vision(config), "num_hidden_layers", None)
    if layers is None:
        return math.inf
    return max(index if index >= 0 else layers + 1 + index for index in _feature_layers(config))


def _merging(members: dict[Part, list[tuple[str, nn.Module]]], config: Any) -> float:
    first = next((module for _, module in members["projector"] if isinstance(module, nn.Linear)), None)
    widths = [module.out_channels for _, module in members["vision_tower"] if isinstance(module, nn.Conv2d | nn.Conv3d)]
    return first.in_features / (widths[0] * len(_feature_layers(config))) if first is not None and widths else 1.0


def _class_tokens(model: nn.Module) -> int:
    return int(any(name.endswith("class_embedding") for name, _ in model.named_parameters()))


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each sequence of a batch, padded or packed, without padding."""
    mask = batch.inputs.get("attention_mask")
    if mask is not None:
        return [int(length) for length in mask.sum(1)]
    positions = batch.inputs["position_ids"]
    text = positions[0, 0] if positions.dim() == 3 else positions[0]
    starts = [*(text == 0).nonzero().flatten().tolist(), len(text)]
    return [stop - start for start, stop in itertools.pairwise(starts)]


def _images(inputs: dict[str, torch.Tensor], config: Any) -> list[_Image]:
    if "image_grid_thw" in inputs:
        return [_grid(*grid, vision=_vision(config)) for grid in inputs["image_grid_thw"].tolist()]
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return []
    side = _vision(config).patch_size
    patches = (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
    return [_Image(patches * tiles, [patches] * tiles, []) for tiles in _tiles(inputs, pixels, config)]


def _tiles(inputs: dict[str, torch.Tensor], pixels: torch.Tensor, config: Any) -> Iterator[int]:
    """Tiles of each image that are not padding."""
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if "image_sizes" in inputs and pinpoints:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        for size in inputs["image_sizes"].tolist():
            yield image_size_to_num_patches(size, [list(each) for each in pinpoints], pixels.shape[-1])
    elif "pixel_attention_mask" in inputs:
        yield from (int(count) for count in inputs["pixel_attention_mask"].flatten(2).any(-1).sum(1))
    else:
        yield from [pixels.shape[1] if pixels.dim() == 5 else 1] * len(pixels)


def _grid(frames: int, height: int, width: int, *, vision: Any) -> _Image:
    """An image of Qwen2-VL's kind: frames of height x width patches; windows only where the model has them."""
    patches = frames * height * width
    side = getattr(vision, "window_size", 0) // vision.patch_size
    windows = [] if not side else [a * b for a in _cuts(height, side) for b in _cuts(width, side)] * frames
    return _Image(patches, [height * width] * frames, windows)


def _cuts(length: int, side: int) -> list[int]:
    return [side] * (length // side) + ([length % side] if length % side else [])
