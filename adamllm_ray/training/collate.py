"""Examples become tensors: image tokens expanded, padded to the right, one dictionary a model's forward accepts.

An image is one placeholder token in an `Example`. Here it is replaced by the ids that the model's own processor
writes for an image of that size (LLaVA-NeXT: tiles and newlines; Qwen2-VL: the patch grid), so nothing about a
family is known here. Text-only examples and examples with an image may share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from adamllm_ray.data import images
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ExampleRefused, ModelError
from adamllm_ray.training.conversations import IGNORE, Example
from adamllm_ray.training.packing import Piece, RopeIndex, pack

if TYPE_CHECKING:
    from adamllm_ray.config import ImageLimits

PAD_MULTIPLE = 8  # tokens
KNOWN_SIZES = 1024  # of images, whose ids are kept
TILES = "aspect_ratio_mask"  # only Mllama's processor writes it: which tiles an image has


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: keyword arguments of the model's forward, CPU tensors: input_ids, attention_mask and labels
            [batch, tokens], and the processor's own image tensors where there are images.
        weight: how much the batch counts in the mean over a global batch: the number of labels that carry loss.
        ids: ids of the examples in it.
        refused: id -> verdict of the examples that were to be in it and could not be used.
        kinds: (row, start, stop, kind) of stretches of the labels: what the loss is reported apart for.
    """

    inputs: dict[str, torch.Tensor]
    weight: float
    ids: list[str] = field(default_factory=list)
    refused: dict[str, Verdict] = field(default_factory=dict)
    kinds: list[tuple[int, int, int, str]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Input tokens without padding."""
        mask = self.inputs.get("attention_mask")
        return self.inputs["input_ids"].numel() if mask is None else int(mask.sum())


@dataclass(frozen=True, slots=True)
class _Image:
    """What the processor makes of one image: token ids to put in place of the placeholder, and its tensors."""

    ids: list[int]
    tensors: dict[str, torch.Tensor]


class Collator:
    """Examples -> Batch. Holds the processor and what it has learnt about image sizes.

    Args:
        processor: a VLM processor, or a bare tokenizer for a text-only model.
        max_length: tokens, image tokens included; a longer example is left out and noted in the batch.
        limits: of the images, the configuration's defaults if absent; a picture that breaks them here was not
            checked by ingest, and stops the job.
        cache_bytes: image tensors kept from one epoch to the next; 0 to keep none.
        packing: join the examples of a batch into one sequence (see `packing`) instead of padding them to a rectangle.
        rope: the model's position function, from `packing.rope_index`; only used when packing.
        always_image: give a batch without any image a blank one without loss, so that every rank of a group uses
            the same parameters in every step (without it the gradient reduction of ZeRO can hang).
    """

    def __init__(
        self,
        processor: Any,
        max_length: int,
        *,
        limits: ImageLimits | None = None,
        cache_bytes: int = 256 << 20,
        packing: bool = False,
        rope: RopeIndex | None = None,
        always_image: bool = False,
    ) -> None:
        self.processor = processor
        self.packing, self.rope = packing, rope
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.image_processor: Any = getattr(processor, "image_processor", None)
        self.max_length = max_length
        self.limits = limits or _default_limits()
        self.always_image = always_image
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.tokenizer.eos_token_id if pad is None else pad
        self.image_token: str | None = getattr(processor, "image_token", None) or getattr(
            self.tokenizer, "image_token", None
        )
        self.image_id: int | None = (
            self.tokenizer.convert_tokens_to_ids(self.image_token)
            if self.image_token and self.image_processor
            else None
        )
        self._expansions: dict[tuple[int, int], list[int]] = {}
        self._kept: dict[bytes, _Image] = {}  # first come, first kept: an epoch visits all, so LRU would never hit
        self._room = cache_bytes

    def __call__(self, examples: Sequence[Example], *, weighted: bool = True) -> Batch:
        """Tensors of a micro-batch. ``weighted=False`` makes one that counts for nothing (filler of a last batch)."""
        pieces: list[Piece] = []
        used: list[str] = []
        refused: dict[str, Verdict] = {}
        kinds: list[tuple[int, int, int, str]] = []
        start = 0
        for example in examples:
            try:
                ids, labels, image = self.expand(example)
            except ExampleRefused as refusal:
                refused[example.id] = refusal.verdict
                continue
            row, offset = (0, start) if self.packing else (len(pieces), 0)
            kinds += [(row, first + offset, last + offset, kind) for first, last, kind in self._moved(example, ids)]
            start += len(ids)
            pieces.append((ids, labels, image.tensors if image else {}))
            used.append(example.id)
        if not pieces or (self.always_image and self.image_id is not None and not any(piece[2] for piece in pieces)):
            blank = self._blank()
            ids = blank.ids or [self.pad_id] * 2
            pieces.append((ids, [IGNORE] * len(ids), blank.tensors))
        text = pack(pieces, self.image_id, self.rope) if self.packing else self._pad(pieces)
        inputs = self._with_images(text, [tensors for _, _, tensors in pieces])
        labels_count = int((inputs["labels"] != IGNORE).sum())
        if not weighted:
            return Batch(inputs, 0.0)
        return Batch(inputs, float(labels_count), used, refused, kinds)

    def expand(self, example: Example) -> tuple[list[int], list[int], _Image | None]:
        """Ids and labels with the image's tokens in place of its placeholder, and the image.

        Raises:
            ExampleRefused: longer than max_length.
            ModelError: an image for a text-only model, or not exactly one placeholder.
        """
        ids, labels, image = example.ids, example.labels, None
        if example.image is not None:
            image = self._image(example.image)
            if self.image_id is None or ids.count(self.image_id) != 1:
                raise ModelError(f"example {example.id} has an image, but not exactly one image placeholder token")
            at = ids.index(self.image_id)
            ids = [*ids[:at], *image.ids, *ids[at + 1 :]]
            labels = [*labels[:at], *[IGNORE] * len(image.ids), *labels[at + 1 :]]
        if len(ids) > self.max_length:
            raise ExampleRefused(Verdict.EXAMPLE_TOO_LONG, f"{len(ids)} tokens, training.max_length {self.max_length}")
        return ids, labels, image

    def prompts(self, asked: Sequence[tuple[list[int], Any]]) -> dict[str, torch.Tensor]:
        """Inputs of ``model.generate`` for (ids with one placeholder, picture or None), padded to the *left*.

        Raises:
            ModelError: a picture for a text-only model, or not exactly one placeholder.
        """
        pieces: list[Piece] = []
        for ids, picture in asked:
            image = None if picture is None else self._process(picture)
            if image is not None:
                if self.image_id is None or ids.count(self.image_id) != 1:
                    raise ModelError("a prompt has an image, but not exactly one image placeholder token")
                at = ids.index(self.image_id)
                ids = [*ids[:at], *image.ids, *ids[at + 1 :]]
            pieces.append((ids, [IGNORE] * len(ids), image.tensors if image else {}))
        text = self._pad(pieces)
        width = text.pop("labels").shape[1]
        for name, tensor in text.items():
            rows = zip(tensor, pieces, strict=True)
            text[name] = torch.stack([row.roll(width - len(ids)) for row, (ids, _, _) in rows])
        return self._with_images(text, [tensors for _, _, tensors in pieces])

    def _with_images(self, text: dict[str, torch.Tensor], images: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """The inputs with the image tensors of all rows (empty for a row without an image).

        Mllama has its images in cross-attention: each row needs one, and a mask [batch, tokens, images, tiles] by which
        text from the image's token on attends to the tiles it has, and a row without an image to none.
        """
        found = [tensors for tensors in images if tensors]
        if not found or TILES not in found[0]:
            return text | _stack(found)
        inputs = text | _stack([tensors or self._blank().tensors for tensors in images])
        after = torch.eq(inputs["input_ids"], self.image_id or 0).cumsum(dim=1) > 0
        inputs["cross_attention_mask"] = after.long()[:, :, None, None] * inputs[TILES][:, None]
        return inputs

    def _moved(self, example: Example, ids: list[int]) -> list[tuple[int, int, str]]:
        """The example's kinds where they are now that its image's tokens are in."""
        added = len(ids) - len(example.ids)
        at = example.ids.index(self.image_id) if added and self.image_id is not None else 0
        return [(a + added, b + added, kind) if a > at else (a, b, kind) for a, b, kind in example.kinds]

    def length(self, example: Example) -> int:
        """Tokens of an example with its image's, read off the image's header. Raises ImageRefused as decoding would."""
        if example.image is None:
            return len(example.ids)
        return len(example.ids) - 1 + len(self._image_ids(images.upright_size(example.image, self.limits)))

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Tokens of an image of (width, height). Raises ModelError for a text-only model."""
        return len(self._image_ids(size))

    def _image(self, data: bytes) -> _Image:
        kept = self._kept.get(data)
        if kept is not None:
            return kept
        image = self._process(images.decode(data, self.limits))
        size = sum(tensor.nbytes for tensor in image.tensors.values())
        if size <= self._room:
            self._kept[data] = image
            self._room -= size
        return image

    def _process(self, picture: Any) -> _Image:
        ids = self._image_ids(picture.size)
        output = self.image_processor(images=[picture], return_tensors="pt")
        return _Image(ids, {name: value for name, value in output.items() if isinstance(value, torch.Tensor)})

    def _image_ids(self, size: tuple[int, int]) -> list[int]:
        """Ids that the processor writes for an image of (width, height); asked once per size, of a blank one."""
        if self.image_processor is None:
            raise ModelError("this model takes no images: its folder has no image processor")
        ids = self._expansions.get(size)
        if ids is None:
            output = self.processor(images=[_blank_picture(size)], text=[self.image_token], return_tensors="pt")
            ids = [token for token in output["input_ids"][0].tolist() if token not in self._wrapping]
            if len(self._expansions) >= KNOWN_SIZES:
                self._expansions.clear()
            self._expansions[size] = ids
        return ids

    @property
    def _wrapping(self) -> set[int]:
        """Ids a tokenizer may put around any text."""
        return {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id} - {None}

    def _blank(self) -> _Image:
        return _Image([], {}) if self.image_id is None else self._process(_blank_picture((64, 64)))

    def _pad(self, pieces: list[Piece]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _, _ in pieces)
        width = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
        ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row, _, _ in pieces])
        labels = torch.tensor([row + [IGNORE] * (width - len(row)) for _, row, _ in pieces])
        lengths = torch.tensor([len(row) for row, _, _ in pieces])
        mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if "mm_token_type_ids" in getattr(self.processor, "model_input_names", []):
            inputs["mm_token_type_ids"] = torch.eq(ids, -1 if self.image_id is None else self.image_id).long()
        return inputs


def _default_limits() -> ImageLimits:
    from adamllm_ray.config import ImageLimits  # not at the top: the step loop and its batches need no pydantic

    return ImageLimits()


def _blank_picture(size: tuple[int, int]) -> Any:
    from PIL import Image

    return Image.new("RGB", size, "white")


def _stack(images: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Image tensors of a batch, joined along the first axis.

    Where pixels are [image, tile, channel, y, x], all tensors with a tile axis are padded to the most tiles: pixels,
    and masks [image, tile, y, x] (Idefics3). The models pass over tiles that are all zero.
    """
    if not images:
        return {}
    tiled = any(tensor.dim() == 5 for tensor in images[0].values())
    joined: dict[str, torch.Tensor] = {}
    for name in images[0]:
        tensors = [image[name] for image in images]
        if tiled and tensors[0].dim() >= 4:
            tensors = _same_tiles(tensors)
        joined[name] = torch.cat(tensors)
    return joined


def _same_tiles(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Zeros added along axis 1 until all have the most."""
    tiles, behind = max(tensor.shape[1] for tensor in tensors), tensors[0].dim() - 2
    pads = [(*(0, 0) * behind, 0, tiles - tensor.shape[1]) for tensor in tensors]
    return [torch.nn.functional.pad(tensor, pad) for tensor, pad in zip(tensors, pads, strict=True)]
