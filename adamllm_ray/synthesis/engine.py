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
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamllm_ray.errors import ConfigError, ModelError
from adamllm_ray.gauges import in_ray
from adamllm_ray.models.adapter import resolve_adapter
from adamllm_ray.models.checkpoint import read_config
from adamllm_ray.models.lean import lean_transformers
from adamllm_ray.synthesis.engine_arguments import engine_arguments
from adamllm_ray.synthesis.meters import Meters
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec, TextEngine, match_completions

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection
    from adamllm_ray.models.adapter import Adapter

__all__ = ["Completion", "Engine", "Request", "SamplingSpec", "TextEngine", "match_completions"]
log = logging.getLogger(__name__)


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
        adapter = resolve_adapter(settings.lora) if settings.lora else None
        arguments = engine_arguments(model, settings, images=images, seed=seed, adapter=adapter)
        self._keys = count()
        self._slots = asyncio.Semaphore(math.ceil(1.1 * settings.slots))  # a few wait inside, ready to go
        self.meters = Meters(Path(model).name)
        core = _InProcess if local else _Served
        try:
            self._core: _InProcess | _Served = core(arguments, _lora_request(adapter), self.meters)
        except TypeError as error:
            raise ConfigError(f"engine.extra: vLLM does not take these arguments: {error}") from error
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"vLLM cannot start {model}: {' '.join(str(error).split())}") from error
        self.meters.ready(settings.slots)

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """One completion per request, in the same order; may be called concurrently from one event loop.

        Raises:
            RowAccountingError: ids are not unique, or vLLM lost or doubled one.
        """
        shared = _sampling_parameters(sampling)
        completions = await asyncio.gather(
            *(self._one(each, _sampling_parameters(each.sampling) if each.sampling else shared) for each in requests)
        )
        return match_completions(requests, completions)

    def close(self) -> None:
        """Stop the replica and free its memory."""
        self._core.close()

    async def _one(self, request: Request, parameters: Any) -> Completion:
        prompt: dict[str, Any] = {"prompt_token_ids": request.prompt_token_ids}
        if request.image is not None:
            prompt["multi_modal_data"] = {"image": request.image}
        async with self._slots:
            self.meters.started()
            started = time.monotonic()
            try:
                output = await self._core.complete(f"{next(self._keys)}", prompt, parameters)
            except _Refused as refusal:
                completion = Completion(request.id, error=str(refusal))
            else:
                completion = replace(_completion(request.id, output), seconds=time.monotonic() - started)
            self.meters.finished(completion)
        return completion


def has_model(model: str, settings: EngineSection) -> bool:
    """Whether vLLM has the class of this model folder; it has given up some families."""
    _prepare_process(settings, settings.gpus_per_replica == 0)
    from vllm import ModelRegistry

    return any(name in ModelRegistry.models for name in read_config(model).get("architectures") or [])


class _Refused(Exception):
    """vLLM does not take this one request; others are not affected."""


class _InProcess:
    """LLMEngine stepped by a thread: requests join the running batch between two steps."""

    def __init__(self, arguments: dict[str, Any], lora: Any, meters: Meters) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        _register_model_class(arguments["model"])
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        # it says for every image that the number of threads stays as it is
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)
        self._lora, self._meters = lora, meters
        if lora is not None:
            self._engine.add_lora(lora)  # an adapter that does not fit is found now, not by the first row
        self._inbox: queue.SimpleQueue[tuple[str, Any, Any, Future[Any]] | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    async def complete(self, key: str, prompt: dict[str, Any], parameters: Any) -> Any:
        future: Future[Any] = Future()
        self._inbox.put((key, await self._rendered(prompt), parameters, future))
        return await asyncio.wrap_future(future)

    async def _rendered(self, prompt: dict[str, Any]) -> Any:
        """What the engine wants instead of pixels, made in the renderer's thread while the engine steps on."""
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        renderer = self._engine.renderer
        try:
            [ready] = await renderer.render_cmpl_async([parse_model_prompt(self._engine.model_config, prompt)])
        except Exception as error:  # no placeholder, an image its processor cannot take
            raise _Refused(_words(error)) from error
        return ready

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
                        self._meters.kv_use(self._engine.engine_core.engine_core.scheduler.kv_cache_manager.usage)
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
            self._engine.add_request(key, prompt, parameters, lora_request=self._lora)
        except Exception as error:  # too long, a token id the model does not have
            future.set_exception(_Refused(_words(error)))
        else:
            self._waiting[key] = future


class _Served:
    """AsyncLLM: host work of one row overlaps with device work of the others."""

    def __init__(self, arguments: dict[str, Any], lora: Any, meters: Meters) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        loggers = [lambda *_: _KvUse(meters)] if in_ray() else None
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=loggers)
        self._lora = lora
        self._loading: asyncio.Future[Any] | None = None

    async def complete(self, key: str, prompt: dict[str, Any], parameters: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._lora is not None:
            await self._adapter()
        last = None
        try:
            async for output in self._engine.generate(prompt, parameters, key, lora_request=self._lora):
                last = output
        except EngineDeadError as error:
            _die(error)
        except Exception as error:
            if self._engine.errored:
                _die(error)
            raise _Refused(_words(error)) from error
        return last

    async def _adapter(self) -> None:
        """Load the adapter before the first row, so that one that does not fit stops the job, not every row."""
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._engine.add_lora(self._lora))
        try:
            await asyncio.shield(self._loading)
        except Exception as error:
            raise ModelError(f"vLLM cannot load the adapter {self._lora.lora_path}: {_words(error)}") from error

    def close(self) -> None:
        self._engine.shutdown()


class _KvUse:
    """vLLM's StatLoggerBase in form: hands the use of the KV cache to our meters."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self._meters.kv_use(scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None:
        pass

    def log(self) -> None:
        pass

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        pass


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
    lean_transformers()


def _register_model_class(model: str) -> None:
    """Import the model's class here, where vLLM would start a process per class to look at it (18 s on a CPU)."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    config = AutoConfig.from_pretrained(Path(model), local_files_only=True)
    for name in config.architectures or []:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _lora_request(adapter: Adapter | None) -> Any:
    from vllm.lora.request import LoRARequest

    return None if adapter is None else LoRARequest(Path(adapter.folder).name, 1, adapter.folder)


def _sampling_parameters(spec: SamplingSpec) -> Any:
    from vllm import SamplingParams

    allowed = None if spec.allowed_token_ids is None else list(spec.allowed_token_ids)
    keep = spec.logprobs is not None
    return SamplingParams(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        seed=spec.seed,
        ignore_eos=True,  # the stop ids below are the only ones
        stop_token_ids=list(spec.stop_token_ids),
        allowed_token_ids=allowed,
        logprob_token_ids=allowed if keep else None,
        logprobs=spec.logprobs if keep and allowed is None else None,
        detokenize=False,  # ids are what is parsed, and this would cost a twentieth of the time
    )


def _completion(name: str, output: Any) -> Completion:
    if output is None or not output.outputs:
        return Completion(name, error="vLLM returned nothing")
    best = output.outputs[0]
    if best.finish_reason not in ("stop", "length"):
        return Completion(name, error=f"vLLM ended the request: {best.finish_reason}")
    first: Mapping[int, Any] = best.logprobs[0] if best.logprobs else {}
    total = best.cumulative_logprob if best.logprobs and best.token_ids else None
    return Completion(
        name,
        list(best.token_ids),
        best.finish_reason,
        logprobs={int(token): float(entry.logprob) for token, entry in first.items()},
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        mean_logprob=None if total is None else float(total) / len(best.token_ids),
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _die(error: BaseException) -> None:
    """End the process at once: Ray restarts the actor and retries its tasks, which a raised error would not do."""
    log.critical("the vLLM engine is dead; ending this process", exc_info=error)
    os._exit(1)
