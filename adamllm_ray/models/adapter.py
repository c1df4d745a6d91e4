"""A LoRA adapter in PEFT layout: which folder a name means, its rank, and whether it is safe to load.

    adapter = resolve_adapter("/models/my-lora")     # adapter_config.json + adapter_model.safetensors

Whether vLLM implements everything the adapter asks for (DoRA, modules_to_save, ...) is decided by vLLM when the
engine starts, not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adamllm_ray.config import S3Section
from adamllm_ray.data import storage
from adamllm_ray.errors import ModelError
from adamllm_ray.models.checkpoint import local_folder, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A usable adapter on this machine's disk. ``rank`` is the largest of all its modules."""

    folder: str
    rank: int


def resolve_adapter(spec: str, s3: S3Section | None = None) -> Adapter:
    """The adapter in a local folder, an ``s3://`` folder or a hub id with revision (see `local_folder`).

    Raises:
        ModelError: no such folder, a file is missing, pickled weights, or no rank.
    """
    folder = local_folder(spec, needs=(CONFIG, WEIGHTS), s3=s3)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is not a LoRA adapter: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder} has no {WEIGHTS}. Pickled weights (.bin) are not loaded, because they can run code; save the "
            "adapter again with safe_serialization=True"
        )
    return Adapter(str(folder), _rank(folder))


def is_adapter(spec: str, s3: S3Section | None = None) -> bool:
    """Whether this names a LoRA adapter rather than a whole model. Raises ModelError for a folder that is not there."""
    if spec.startswith("s3://"):
        place = storage.resolve(spec, s3)
        with storage.storage_errors("read the model", spec):
            return storage.read_small(place.child(CONFIG)) is not None
    return (local_folder(spec, s3=s3) / CONFIG).is_file()


def _rank(folder: Path) -> int:
    config = read_json(folder / CONFIG)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise ModelError(f"{folder / CONFIG}: 'r' must be a positive whole number, got {ranks}")
    return max(ranks)
