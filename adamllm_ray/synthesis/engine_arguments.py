"""From a pool's configuration to the keyword arguments of vLLM's EngineArgs. No vllm in here.

``engine.extra`` may set anything that vLLM knows, except what keeps code and network out (`GUARDED`, `FORBIDDEN`) and
what Ray must know about too (`OWN_FIELDS`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamllm_ray.errors import ConfigError
from adamllm_ray.models.checkpoint import model_fingerprint

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection
    from adamllm_ray.models.adapter import Adapter

GUARDED = {  # what `engine.extra` may not change: these keep code and network out
    "trust_remote_code": False,
    "allowed_local_media_path": "",
    "allowed_media_domains": [],
    "load_format": "safetensors",
}
FORBIDDEN = {  # each takes the import path of a class, that is, code
    "logits_processors", "scheduler_cls", "worker_cls", "worker_extension_cls", "model_class_overrides",
}  # fmt: skip
_NAMES_CODE = re.compile(r"(module_path|plugin|cls|logits_processors|class_overrides)$")  # keys at any depth, likewise
_BACKENDS = ("distributed_executor_backend", "backend")  # a word, or an import path
OWN_FIELDS = {
    "model": "models.*",
    "tensor_parallel_size": "engine.gpus_per_replica (GPUs = tensor parallel size x engine.pipeline_parallel)",
    "pipeline_parallel_size": "engine.pipeline_parallel",
    "data_parallel_size": "engine.replicas",
    "enable_lora": "engine.lora",
}
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for


def engine_arguments(
    model: str, settings: EngineSection, *, images: bool, seed: int, adapter: Adapter | None = None
) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs for one replica. Raises ConfigError for a bad ``extra``."""
    _check_extra(settings)
    arguments: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "max_model_len": min(settings.max_model_len, _positions(model)),
        "max_num_seqs": settings.max_num_seqs,
        "dtype": settings.dtype,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # the folder's own may hold stop ids and penalties we did not ask for
        "mm_processor_cache_gb": 0,  # every image is seen once
        "disable_log_stats": True,
    }
    if images:
        arguments["limit_mm_per_prompt"] = {"image": 1}
    if settings.quantization:
        arguments["quantization"] = settings.quantization
    if adapter is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(adapter.rank)}
    return arguments | _device(settings) | settings.extra | GUARDED


def engine_identity(settings: EngineSection) -> dict[str, Any]:
    """What of a pool's settings can change rows, for the fingerprint: not its size, its devices or its batches."""
    identity = settings.model_dump(include={"max_model_len", "dtype", "extra"})
    if settings.quantization:
        identity["quantization"] = settings.quantization
    if settings.lora:
        identity["lora"] = model_fingerprint(settings.lora)
    return identity


def _device(settings: EngineSection) -> dict[str, Any]:
    if not settings.gpus_per_replica:
        return {
            "dtype": "float32" if settings.dtype == "auto" else settings.dtype,
            "enforce_eager": True,  # compiling takes minutes on a CPU
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
            # a prompt that a step cuts in two is sampled once too often, and vLLM 0.32 winds that request's random
            # generator back in a way that only GPUs have: the engine died of it (temperature > 0, many slots)
            "enable_chunked_prefill": False,
        }
    arguments: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
    }
    if settings.pipeline_parallel > 1:  # stages may lie on several nodes, so Ray starts vLLM's workers
        arguments |= {
            "pipeline_parallel_size": settings.pipeline_parallel,
            "distributed_executor_backend": "ray",
        }
    return arguments


def _check_extra(settings: EngineSection) -> None:
    taken = sorted((GUARDED.keys() | FORBIDDEN) & settings.extra.keys())
    if taken:
        raise ConfigError(f"engine.extra: {', '.join(taken)} cannot be changed")
    for place in _code(settings.extra):
        raise ConfigError(f"engine.extra: {place} names code to import, which no configuration may")
    for name in sorted(OWN_FIELDS.keys() & settings.extra.keys()):
        raise ConfigError(f"engine.extra: {name} is not set here; use {OWN_FIELDS[name]}")


def _code(tree: Any, place: str = "") -> Iterator[str]:
    """Where settings, at any depth, name a module, a class or a file of code."""
    if isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _code(value, f"{place}.{number}")
    elif isinstance(tree, dict):
        for key, value in tree.items():
            here = f"{place}.{key}" if place else str(key)
            path = str(key) in _BACKENDS and isinstance(value, str) and "." in value
            if value and (_NAMES_CODE.search(str(key)) or path or value == "custom_class"):
                yield here
            yield from _code(value, here)


def _lora_rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and the adapter fits into."""
    for most in _RANKS:
        if rank <= most:
            return most
    raise ConfigError(f"engine.lora: the adapter has rank {rank}; vLLM takes at most {_RANKS[-1]}")


def _positions(model: str) -> float:
    """Tokens that the model was made for; infinite where its config does not say so in one number (scaled RoPE)."""
    path = Path(model) / "config.json"
    if not path.is_file():
        return math.inf
    config = json.loads(path.read_text("utf-8"))
    text = config.get("text_config", config)
    scaled = any((text.get(key) or {}).get("factor") for key in ("rope_scaling", "rope_parameters"))
    return math.inf if scaled else text.get("max_position_embeddings", math.inf)
