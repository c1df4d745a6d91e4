"""The end of a run: trained weights become a model folder that transformers and vLLM load.

    export_trained(loop, base, section, target)         # every worker calls it, worker 0 writes

Worker 0 never holds more than one whole model: an empty one takes over the tensors of the step loop as they are (ZeRO
0 to 2) or as they are gathered, one at a time (ZeRO-3). Adapters are merged in place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from adamllm_ray.config import TrainingSection
from adamllm_ray.data import storage, transfer
from adamllm_ray.training.loop import StepLoop


def export_trained(loop: StepLoop, base: str, section: TrainingSection, target: storage.Location) -> None:
    """Write the loop's model to the folder ``target``, in the form of the model folder ``base``.

    Training is over then: where adapters are merged, the loop's own tensors may be changed.

    Raises:
        StorageError: the folder cannot be written.
    """
    from adamllm_ray.models.checkpoint import export_model

    whole = trained_model(loop, base, section)
    if whole is None:
        return
    with tempfile.TemporaryDirectory() as folder, storage.storage_errors("write the model", target.uri):
        export_model(*whole, folder)
        storage.remove_folder(target)
        transfer.upload(Path(folder), target)


def trained_model(loop: StepLoop, base: str, section: TrainingSection) -> tuple[Any, Any] | None:
    """(model with the trained weights, processor) on worker 0, None on the others. Every worker must call it."""
    if loop.rank:
        loop.each_weight(lambda _name, _tensor: None)
        return None
    from adamllm_ray.models.checkpoint import empty_vlm
    from adamllm_ray.training.parts import attach_lora

    model, processor = empty_vlm(base, "bfloat16" if section.precision == "bf16" else "float32")
    tuner = attach_lora(model, section.lora) if section.lora and section.language_model.train else None
    weights: dict[str, Any] = {}
    loop.each_weight(weights.__setitem__)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return (tuner.merge_and_unload() if tuner is not None else model), processor
