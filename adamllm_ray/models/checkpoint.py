"""Loading and exporting models in Hugging Face layout.

transformers 5 writes LLaVA-NeXT vision keys as ``vision_tower.X``; vLLM 0.32 knows only
``vision_tower.vision_model.X``. The exporter writes the latter, and transformers reads both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def export_model(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write ``model`` (safetensors) and its processor or tokenizer so that transformers and vLLM both load them."""
    target = Path(folder)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    for shard in sorted(target.glob("*.safetensors")):
        _rename_keys(shard)
    return target


def _rename_keys(shard: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(shard)
    renamed = {_vllm_key(key): value for key, value in weights.items()}
    if renamed.keys() != weights.keys():
        save_file(renamed, shard, metadata={"format": "pt"})


def _vllm_key(key: str) -> str:
    if "vision_tower." in key and "vision_tower.vision_model." not in key:
        return key.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return key
