"""Model folders in Hugging Face layout: which one a name means, whether it is usable, loading and exporting.

Only safetensors, only code that transformers ships: a folder that wants to bring its own code (``auto_map``) or
pickled weights is refused before anything in it is loaded. Nothing is downloaded unless the name of a model says so.

transformers 5 writes LLaVA-NeXT vision keys as ``vision_tower.X``; vLLM 0.32 knows only
``vision_tower.vision_model.X``. The exporter writes the latter, and transformers reads both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs as pafs

from adamllm_ray.config import S3Section
from adamllm_ray.data import storage
from adamllm_ray.errors import ModelError, foreign
from adamllm_ray.models.lean import lean_transformers

POCKET = "pocket:"
SHARD_BYTES = 4 << 30  # of an exported model: what is held beside it while it is written
WHOLE_FILE_BYTES = 64 << 20  # larger weight files are sampled for the fingerprint
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10


def resolve_model(spec: str, s3: S3Section | None = None) -> str:
    """Folder of a model on this machine; call it in the process that needs the model, since every node has its disk.

    ``s3`` says how to reach an ``s3://`` folder; by default as the environment says.

    Raises:
        ModelError: no such folder, no config.json, no safetensors, or it wants to run its own code.
        StorageError: it could not be fetched (see `local_folder`).
    """
    folder = local_folder(spec, s3=s3)
    read_config(folder)
    if (file := _own_code(folder)) is not None:
        raise ModelError(
            f"{folder} wants to run code of its own (auto_map in {file}), which is never done here; use a conversion "
            "of the model to a class that transformers ships"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors file. Pickled weights (.bin, .pt) are not loaded, because they can run "
            "code; save the model again with safe_serialization=True"
        )
    return str(folder.resolve())


def local_folder(
    spec: str, needs: tuple[str, ...] = ("config.json", "*.safetensors"), s3: S3Section | None = None
) -> Path:
    """Where 'pocket:NAME', a local folder, ``s3://bucket/folder`` or ``org/name@<40 hex revision>`` lies on this disk.

    The latter two are fetched unless this node has them. Raises ModelError if there is no such folder; ``needs`` is
    what its message asks for.
    """
    from adamllm_ray.models import fetch

    if fetch.is_remote(spec):
        return fetch.from_hub(spec) if fetch.is_hub_id(spec) else fetch.from_s3(spec, s3)
    try:
        folder = _pocket_folder(spec.removeprefix(POCKET)) if spec.startswith(POCKET) else Path(spec).expanduser()
        if spec and folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long a name; no name at all; ~nobody
        raise ModelError(f"not the name of a model folder: {foreign(spec, 80)}: {error.args[-1]}") from error
    raise ModelError(_missing(spec, folder, needs))


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError if there is none or it is not a JSON object."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    return read_json(path)


def model_fingerprint(spec: str | Path, s3: S3Section | None = None) -> str:
    """32 hex characters over everything that makes a model: configuration, tokenizer, processor and weights.

    Weight files up to 64 MiB count with every byte, larger ones with their size, header and 64 samples, so that a
    model on ``s3://`` is not fetched for it; its copy on disk has the same fingerprint. A revision of the hub names
    its content and is taken at its word.
    """
    from adamllm_ray.models import fetch

    digest = hashlib.sha256()
    name = str(spec)
    if fetch.is_hub_id(name):
        return hashlib.sha256(name.encode()).hexdigest()[:32]
    place = storage.resolve(name if fetch.is_remote(name) else str(local_folder(name)), s3)
    with storage.storage_errors("read the model", place.uri):
        for info in fetch.model_files(place):
            digest.update(f"{info.base_name}\0{info.size}\0".encode())
            for chunk in _signature(place.fs, info):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def model_identity(spec: str) -> str:
    """`model_fingerprint`, after the checks of `resolve_model` where the model is here already. Fetches nothing."""
    from adamllm_ray.models import fetch

    if not fetch.is_remote(spec):
        resolve_model(spec)
    return model_fingerprint(spec)


def load_vlm(
    folder: str | Path, dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto", quantization: Any = None
) -> tuple[Any, Any]:
    """(model, processor) of a vision-language model folder, on the CPU, in eval mode.

    ``quantization`` is transformers' setting for bitsandbytes; such a model is put on this worker's GPU.

    Raises:
        ModelError: not a usable folder (see `resolve_model`), not a vision-language model, or damaged.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports deepspeed, which warns when it guesses
    lean_transformers()
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = resolve_model(str(folder))
    _require_vlm(path)
    wanted: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    packed: dict[str, Any] = {}
    if quantization is not None:
        packed = {"quantization_config": quantization, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
    with quiet_transformers():
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype=wanted, local_files_only=True, use_safetensors=True, trust_remote_code=False, **packed
            )
            processor = AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"the model in {path} cannot be loaded: {error}") from error
    return model, processor


def empty_vlm(folder: str | Path, dtype: Literal["float32", "bfloat16"]) -> tuple[Any, Any]:
    """What `load_vlm` gives, but the model's tensors are on torch's meta device: names and shapes, no memory.

    To be filled with ``load_state_dict(..., assign=True)`` and exported. Raises ModelError as `load_vlm`.
    """
    lean_transformers()
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    processor = load_processor(folder)
    path = resolve_model(str(folder))
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    if (Path(path) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval(), processor


def load_processor(folder: str | Path) -> Any:
    """The processor of a vision-language model folder, without its weights. Raises ModelError as `load_vlm`."""
    lean_transformers()
    from transformers import AutoProcessor

    path = resolve_model(str(folder))
    _require_vlm(path)
    with quiet_transformers():
        try:
            return AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"the processor in {path} cannot be loaded: {error}") from error


def export_model(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write ``model`` (safetensors) and its processor or tokenizer so that transformers and vLLM both load them."""
    target = Path(folder)
    with quiet_transformers():
        model.save_pretrained(target, max_shard_size=SHARD_BYTES)
        processor.save_pretrained(target)
    for shard in sorted(target.glob("*.safetensors")):
        _rename_keys(shard)
    index = target / "model.safetensors.index.json"
    if index.exists():
        table = json.loads(index.read_text("utf-8"))
        table["weight_map"] = {_vllm_key(key): shard for key, shard in table["weight_map"].items()}
        index.write_text(json.dumps(table, indent=2), "utf-8")
    return target


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers for the length of the block; errors still come."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def _pocket_folder(name: str) -> Path:
    return Path(__file__).parents[1] / "pocket" / "weights" / (name if re.fullmatch(r"\w+", name) else "none")


def _own_code(folder: Path) -> str | None:
    """The configuration file of a folder that names code beside it, if one does: of model, tokenizer or processor."""
    return next((path.name for path in sorted(folder.glob("*config.json")) if _names_code(read_json(path))), None)


def _names_code(tree: Any) -> bool:
    """At any depth: a part of a model has a configuration of its own in that of the whole."""
    if isinstance(tree, dict):
        return "auto_map" in tree or any(map(_names_code, tree.values()))
    return isinstance(tree, list) and any(map(_names_code, tree))


def _missing(spec: str, folder: Path, needs: tuple[str, ...]) -> str:
    if not spec.startswith(POCKET):
        text = f"no model folder at {folder}; give the path of a folder with {' and '.join(needs)}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+(@.*)?", spec):
            text += ". A model of the Hugging Face hub needs its revision: org/name@<40 hex digits>"
        return text
    shipped = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
    names = ", ".join(POCKET + name for name in shipped) or "none in this installation; run `adamllm pocket build`"
    return f"no pocket model is called '{spec}'; there are: {names}"


def _require_vlm(folder: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = read_config(folder).get("model_type")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(
            f"{folder} holds a '{kind}' model, which takes no images; give a vision-language model such as a "
            "llava_next or qwen2_vl folder"
        )
    if not any((Path(folder) / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(f"{folder} has no image processor (processor_config.json or preprocessor_config.json)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file. Raises ModelError for anything else in it."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path} is not a JSON object")
    return tree


def _signature(fs: pafs.FileSystem, info: pafs.FileInfo) -> Iterator[bytes]:
    with fs.open_input_file(info.path) as file:
        if info.size <= WHOLE_FILE_BYTES:
            yield file.read()
            return
        yield file.read(_SAMPLE_BYTES)
        for sample in range(_SAMPLES):
            yield file.read_at(_SAMPLE_BYTES, (info.size - _SAMPLE_BYTES) * (sample + 1) // _SAMPLES)


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
