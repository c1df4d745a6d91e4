"""The end of a run: trained weights become a model folder that transformers and vLLM load.

    export_trained(loop, base, section, target)         # every worker calls it, worker 0 writes

Worker 0 never holds more than one whole model: an empty one takes over the tensors of the step loop as they are (ZeRO
0 to 2) or as they are gathered, one at a time (ZeRO-3). Adapters are merged in place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from adamllm_ray.config import TrainingSection
from adamllm_ray.data import storage, transfer
from adamllm_ray.training.adapters import attach_lora, write_adapter
from adamllm_ray.training.checks import outline
from adamllm_ray.training.loop import StepLoop


def export_trained(
    loop: StepLoop,
    base: str,
    section: TrainingSection,
    target: storage.Location,
    adapter: storage.Location | None = None,
) -> None:
    """Write the loop's model to the folder ``target``, in the form of the model folder ``base``.

    With ``lora.export_adapter`` the adapter alone goes to the folder ``adapter``. Training is over then: where adapters
    are merged, the loop's own tensors may be changed.

    Raises:
        StorageError: a folder cannot be written.
    """
    from adamllm_ray.models.checkpoint import export_model

    weights = _weights(loop, section)
    if weights is None:
        return
    if adapter is not None and section.lora is not None and section.lora.export_adapter:
        _write(adapter, lambda folder: write_adapter(weights, outline(base), section, base, folder))
    whole = _filled(base, section, weights)
    _write(target, lambda folder: export_model(*whole, folder))


def trained_model(loop: StepLoop, base: str, section: TrainingSection) -> tuple[Any, Any] | None:
    """(model with the trained weights, processor) on worker 0, None on the others. Every worker must call it."""
    weights = _weights(loop, section)
    return None if weights is None else _filled(base, section, weights)


def _weights(loop: StepLoop, section: TrainingSection) -> dict[str, Any] | None:
    """The loop's tensors by name on worker 0; over a base in 4 bits only those that trained."""
    weights: dict[str, Any] = {}
    loop.each_weight(weights.__setitem__ if loop.rank == 0 else lambda _name, _tensor: None)
    if loop.rank:
        return None
    if section.lora is None or not section.lora.base_bits:
        return weights
    trained = {name for name, own in loop.engine.module.named_parameters() if own.requires_grad}
    return {name: tensor.cpu() for name, tensor in weights.items() if name in trained}


def _filled(base: str, section: TrainingSection, weights: dict[str, Any]) -> tuple[Any, Any]:
    """(model, processor) with these weights, adapters merged; what 4 bits held is taken from the base in full."""
    from adamllm_ray.models.checkpoint import empty_vlm, load_vlm

    packed = section.lora is not None and section.lora.base_bits is not None
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if section.precision == "bf16" else "float32"
    model, processor = load_vlm(base, dtype) if packed else empty_vlm(base, dtype)
    tuner = attach_lora(model, section)
    model.load_state_dict(weights, assign=True, strict=not packed)
    model.tie_weights()
    return (tuner.merge_and_unload() if tuner is not None else model), processor


def _write(target: storage.Location, make: Callable[[Path], object]) -> None:
    """What ``make`` puts into a folder, uploaded in place of what was there."""
    with tempfile.TemporaryDirectory() as folder, storage.storage_errors("write the model", target.uri):
        make(Path(folder))
        storage.remove_folder(target)
        transfer.upload(Path(folder), target)
