"""One vLLM replica behind one small async interface; the only file that imports vllm.

    engine = Engine("/models/judge", config.judge.engine)
    completions = await engine.generate([Request("a", ids)], SamplingSpec(max_tokens=1))

Prompts are token ids, images are decoded pixels: no path, URL or text template ever reaches vLLM. A request that vLLM
refuses becomes a completion with ``error``; a dead engine ends the process, so that Ray starts the actor again.
Batches overlap: whoever awaits `generate` adds to one running batch, nothing waits for the slowest row of another.

With GPUs the engine is vLLM's AsyncLLM (its core in processes of its own); without, it is LLMEngine in a thread of this
process, which starts three times faster and needs a third of the memory (docs/decisions/0003-vllm-replica.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import queue
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adamllm_ray.errors import ConfigError, ModelError, RowAccountingError

if TYPE_CHECKING:
    from PIL import Image

    from adamllm_ray.config import EngineSection

log = logging.getLogger(__name__)
_TOO_LONG = re.compile("maximum (model|context) length")

GUARDED = {  # what `engine.extra` may not change: these keep code and network out
    "trust_remote_code": False,
    "allowed_local_media_path": "",
    "allowed_media_domains": [],
    "load_format": "safetensors",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. ``prompt_token_ids`` holds exactly one image placeholder when there is an ``image`` (RGB)."""

    id: str
    prompt_token_ids: list[int]
    image: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to decode. Generation ends only at ``stop_token_ids`` or ``max_tokens``, whatever the model folder says.

    ``logprobs`` keeps log-probabilities of the first token: those of ``allowed_token_ids`` when given, otherwise
    those of the ``logprobs`` most likely tokens.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one request; ``token_ids`` include the stop token. With ``error`` the rest is empty."""

    id: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    logprobs: dict[int, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def too_long(self) -> bool:
        """The prompt, image tokens included, does not fit into ``max_model_len``."""
        return self.error is not None and _TOO_LONG.search(self.error) is not None


class TextEngine(Protocol):
    """What the stages ask of an engine: `Engine`, or a stand-in of the fault tests."""

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """One completion per request, in the same order."""
        ...


def match_completions(requests: Sequence[Request], completions: Sequence[Completion]) -> list[Completion]:
    """The completions in the order of the requests.

    Raises:
        RowAccountingError: an id is missing, doubled or unknown; names it. Such a batch must never be written.
    """
    found: dict[str, Completion] = {}
    for completion in completions:
        if completion.id in found:
            raise RowAccountingError(f"the engine answered request {completion.id} twice")
        found[completion.id] = completion
    wanted = [request.id for request in requests]
    if len(set(wanted)) != len(wanted):
        raise RowAccountingError(f"two requests of one batch have the same id, among {wanted[:4]}...")
    for name in found.keys() - set(wanted):
        raise RowAccountingError(f"the engine answered {name}, which nobody asked for")
    for name in wanted:
        if name not in found:
            raise RowAccountingError(f"the engine lost request {name}")
    return [found[name] for name in wanted]


class Engine:
    """A running vLLM replica for one model folder. Starting one takes seconds to minutes.

    Args:
        model: Hugging Face folder with safetensors weights.
        settings: the pool's section of the configuration.
        images: the model is a VLM and requests carry one image.
        seed: engine seed; results of greedy decoding do not depend on it.
        in_process: run the core in this process; default: exactly when there is no GPU.

    Raises:
        ConfigError: ``settings.extra`` holds an unknown or a guarded argument.
        ModelError: vLLM cannot run this model with these settings.
    """

    def __init__(
        self,
        model: str,
        settings: EngineSection,
        *,
        images: bool = False,
        seed: int = 0,
        in_process: bool | None = None,
    ) -> None:
        local = settings.gpus_per_replica == 0 if in_process is None else in_process
        _prepare_process(settings, local)
        arguments = engine_arguments(model, settings, images=images, seed=seed)
        self._keys = count()
        self._slots = asyncio.Semaphore(math.ceil(1.1 * settings.max_num_seqs))  # a few wait inside, ready to go
        try:
            self._core: _InProcess | _Served = _InProcess(model, arguments) if local else _Served(arguments)
        except TypeError as error:
            raise ConfigError(f"engine.extra: vLLM does not take these arguments: {error}") from error
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"vLLM cannot start {model}: {' '.join(str(error).split())}") from error

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """One completion per request, in the same order; may be called concurrently from one event loop.

        Raises:
            RowAccountingError: ids are not unique, or vLLM lost or doubled one.
        """
        parameters = _sampling_parameters(sampling)
        completions = await asyncio.gather(*(self._one(request, parameters) for request in requests))
        return match_completions(requests, completions)

    def close(self) -> None:
        """Stop the replica and free its memory."""
        self._core.close()

    async def _one(self, request: Request, parameters: Any) -> Completion:
        prompt: dict[str, Any] = {"prompt_token_ids": request.prompt_token_ids}
        if request.image is not None:
            prompt["multi_modal_data"] = {"image": request.image}
        async with self._slots:
            try:
                output = await self._core.complete(f"{next(self._keys)}", prompt, parameters)
            except _Refused as refusal:
                return Completion(request.id, error=str(refusal))
        return _completion(request.id, output)


def engine_arguments(model: str, settings: EngineSection, *, images: bool, seed: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs for one replica. Raises ConfigError for a guarded key in ``extra``."""
    taken = sorted(GUARDED.keys() & settings.extra.keys())
    if taken:
        raise ConfigError(f"engine.extra: {', '.join(taken)} cannot be changed")
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
    if settings.gpus_per_replica:
        arguments |= {
            "tensor_parallel_size": settings.gpus_per_replica,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
        }
    else:
        arguments |= {
            "dtype": "float32" if settings.dtype == "auto" else settings.dtype,
            "enforce_eager": True,  # compiling takes minutes on a CPU
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
        }
    return arguments | settings.extra | GUARDED


def _positions(model: str) -> float:
    """Tokens that the model was made for; infinite where its config does not say so in one number (scaled RoPE)."""
    path = Path(model) / "config.json"
    if not path.is_file():
        return math.inf
    config = json.loads(path.read_text("utf-8"))
    text = config.get("text_config", config)
    scaled = any((text.get(key) or {}).get("factor") for key in ("rope_scaling", "rope_parameters"))
    return math.inf if scaled else text.get("max_position_embeddings", math.inf)


class _Refused(Exception):
    """vLLM does not take this one request; others are not affected."""


class _InProcess:
    """LLMEngine stepped by a thread: requests join the running batch between two steps."""

    def __init__(self, model: str, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        _register_model_class(model)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._inbox: queue.SimpleQueue[tuple[str, Any, Any, Future[Any]] | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    async def complete(self, key: str, prompt: dict[str, Any], parameters: Any) -> Any:
        future: Future[Any] = Future()
        self._inbox.put((key, prompt, parameters, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()
        self._engine.engine_core.shutdown()

    def _run(self) -> None:
        try:
            while self._take_in():
                for output in self._engine.step():
                    if output.finished:
                        self._waiting.pop(output.request_id).set_result(output)
        except BaseException as error:
            _die(error)

    def _take_in(self) -> bool:
        """Move waiting requests into the engine; block while it is idle. False once it is closed."""
        while True:
            try:
                item = self._inbox.get(block=not self._engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if item is None:
                return False
            self._add(*item)

    def _add(self, key: str, prompt: Any, parameters: Any, future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            self._engine.add_request(key, prompt, parameters)
        except Exception as error:  # too long, no placeholder, an image its processor cannot take
            future.set_exception(_Refused(_words(error)))
        else:
            self._waiting[key] = future


class _Served:
    """AsyncLLM: host work of one row overlaps with device work of the others."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._arguments = AsyncEngineArgs(**arguments)
        self._engine = AsyncLLM.from_engine_args(self._arguments)

    async def complete(self, key: str, prompt: dict[str, Any], parameters: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        last = None
        try:
            async for output in self._engine.generate(prompt, parameters, key):
                last = output
        except EngineDeadError as error:
            _die(error)
        except Exception as error:
            if self._engine.errored:
                _die(error)
            raise _Refused(_words(error)) from error
        return last

    def close(self) -> None:
        self._engine.shutdown()


def _prepare_process(settings: EngineSection, in_process: bool) -> None:
    """Environment that vLLM reads when it is imported; the replica has its process to itself."""
    os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not settings.gpus_per_replica:
        os.environ["OMP_NUM_THREADS"] = str(max(1, round(settings.cpus_per_replica)))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # replicas on one machine would pin the same cores
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over kv_cache_gib


def _register_model_class(model: str) -> None:
    """Import the model's class here, where vLLM would start a process per class to look at it (18 s on a CPU)."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    config = AutoConfig.from_pretrained(Path(model), local_files_only=True)
    for name in config.architectures or []:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _sampling_parameters(spec: SamplingSpec) -> Any:
    from vllm import SamplingParams

    allowed = None if spec.allowed_token_ids is None else list(spec.allowed_token_ids)
    keep = spec.logprobs is not None
    return SamplingParams(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        seed=spec.seed,
        ignore_eos=True,  # the stop ids below are the only ones
        stop_token_ids=list(spec.stop_token_ids),
        allowed_token_ids=allowed,
        logprob_token_ids=allowed if keep else None,
        logprobs=spec.logprobs if keep and allowed is None else None,
        skip_special_tokens=False,
    )


def _completion(name: str, output: Any) -> Completion:
    if output is None or not output.outputs:
        return Completion(name, error="vLLM returned nothing")
    best = output.outputs[0]
    if best.finish_reason not in ("stop", "length"):
        return Completion(name, error=f"vLLM ended the request: {best.finish_reason}")
    first: Mapping[int, Any] = best.logprobs[0] if best.logprobs else {}
    logprobs = {int(token): float(entry.logprob) for token, entry in first.items()}
    return Completion(name, list(best.token_ids), best.text, best.finish_reason, logprobs)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _die(error: BaseException) -> None:
    """End the process at once: Ray restarts the actor and retries its tasks, which a raised error would not do."""
    log.critical("the vLLM engine is dead; ending this process", exc_info=error)
    os._exit(1)
