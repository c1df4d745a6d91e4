"""A model in transformers behind the interface of an engine, for families that vLLM does not have. Greedy only.

    engine = TransformersEngine("/models/llama-vision", config.evaluation.engine)
    completions = await engine.generate(requests, SamplingSpec(max_tokens=64, stop_token_ids=(2,)))

Which backend a replica gets is said by ``evaluation.backend``, see `engine_maker`. Requests are answered in batches of
``engine.max_num_seqs``, one batch after the other: correct and slow. A LoRA adapter (``engine.lora``) stays an adapter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from adamllm_ray.errors import ModelError
from adamllm_ray.models.adapter import resolve_adapter
from adamllm_ray.synthesis.actors import EngineMaker, start_engine
from adamllm_ray.synthesis.engine import has_model
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec, TextEngine, match_completions

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

Backend = Literal["vllm", "transformers", "auto"]


def engine_maker(backend: Backend) -> EngineMaker:
    """What starts a replica's engine under this ``evaluation.backend``."""
    return {"vllm": start_engine, "transformers": start_transformers, "auto": start_either}[backend]


def start_transformers(model: str, settings: EngineSection, images: bool) -> TextEngine:
    """A replica on transformers."""
    return TransformersEngine(model, settings)


def start_either(model: str, settings: EngineSection, images: bool) -> TextEngine:
    """A vLLM replica if vLLM has the model's family, else one on transformers."""
    start = start_engine if has_model(model, settings) else start_transformers
    return start(model, settings, images)


class TransformersEngine:
    """See the module docstring. On the replica's GPU if it has one.

    Raises:
        ModelError: the folder cannot be loaded, or the adapter does not fit.
    """

    backend: Backend = "transformers"

    def __init__(self, model: str, settings: EngineSection) -> None:
        import torch
        from transformers import GenerationConfig

        from adamllm_ray.models.checkpoint import load_vlm
        from adamllm_ray.training.collate import Collator

        on_gpu = settings.gpus_per_replica > 0
        # as vLLM's CPU build: float32 where nothing is said and there is no GPU
        self._model, processor = load_vlm(
            model, "float32" if settings.dtype == "auto" and not on_gpu else settings.dtype
        )
        self._model.generation_config = GenerationConfig()  # the folder's own may hold penalties nobody asked for
        if settings.lora is not None:
            self._model = _with_adapter(self._model, settings.lora)
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._model.to(self._device).eval()
        self._most = min(settings.max_model_len, self._positions())
        self._batch = settings.max_num_seqs
        self._collator = Collator(processor, self._most, cache_bytes=0)
        self._turn = asyncio.Lock()

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """One completion per request, in the same order. Raises ValueError for anything but greedy decoding."""
        for spec in (sampling, *(request.sampling for request in requests if request.sampling)):
            if spec.temperature or spec.allowed_token_ids or spec.logprobs is not None:
                raise ValueError("the transformers backend decodes greedily, without logprobs or a list of tokens")
        completions: list[Completion] = []
        for batch in _chunks(requests, self._batch):
            async with self._turn:
                completions += await asyncio.to_thread(self._answers, batch, sampling)
        return match_completions(requests, completions)

    def _answers(self, batch: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """All of a batch at once; if that fails, one by one, so that only the guilty row is refused."""
        started = time.monotonic()
        try:
            return self._generated(batch, sampling, started)
        except (RuntimeError, ValueError, ModelError) as error:
            if len(batch) == 1:
                words = f"{type(error).__name__}: {error}"[:500]
                return [Completion(batch[0].id, error=words, seconds=time.monotonic() - started)]
        return [one for request in batch for one in self._answers([request], sampling)]

    def _generated(self, batch: Sequence[Request], sampling: SamplingSpec, started: float) -> list[Completion]:
        import torch

        specs = [request.sampling or sampling for request in batch]
        inputs = self._collator.prompts([(request.prompt_token_ids, request.image) for request in batch])
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        if max(lengths) >= self._most:
            raise ValueError(f"the prompt has {max(lengths)} tokens, the maximum model length is {self._most}")
        room = [min(spec.max_tokens, self._most - length) for spec, length in zip(specs, lengths, strict=True)]
        with torch.inference_mode():
            out = self._model.generate(
                **{name: self._placed(tensor) for name, tensor in inputs.items()},
                max_new_tokens=max(room),
                do_sample=False,
                eos_token_id=list(specs[0].stop_token_ids) or None,
                pad_token_id=self._collator.pad_id,
            )
        written = out[:, inputs["input_ids"].shape[1] :].tolist()
        seconds = time.monotonic() - started
        return [
            _completion(request.id, ids[:most], spec, length, seconds)
            for request, ids, most, spec, length in zip(batch, written, room, specs, lengths, strict=True)
        ]

    def _placed(self, tensor: Any) -> Any:
        """On the model's device; pixels in its precision, too."""
        return tensor.to(device=self._device, dtype=self._model.dtype if tensor.is_floating_point() else tensor.dtype)

    def _positions(self) -> int:
        """Tokens that the model was made for."""
        config = self._model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _completion(name: str, ids: list[int], spec: SamplingSpec, prompt: int, seconds: float) -> Completion:
    """Up to and with the first stop token; what follows is padding of the batch."""
    end = next((at for at, token in enumerate(ids) if token in spec.stop_token_ids), None)
    written = ids if end is None else ids[: end + 1]
    reason = "length" if end is None else "stop"
    return Completion(name, written, reason, prompt_tokens=prompt, seconds=seconds)


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    folder = resolve_adapter(adapter).folder
    try:
        return PeftModel.from_pretrained(model, folder)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"the adapter in {folder} does not fit this model: {error}") from error


def _chunks(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))
