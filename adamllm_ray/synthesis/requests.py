"""What the stages and an engine say to each other: requests, sampling, completions. No vllm in here.

    completions = await engine.generate([Request("a", ids)], SamplingSpec(max_tokens=1))

Several candidates of one row are several requests, each with its own id and ``Request.sampling``; their prompts share
the prefix cache, so only the first one pays for the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from adamllm_ray.errors import RowAccountingError

if TYPE_CHECKING:
    from PIL import Image

_TOO_LONG = re.compile("maximum (model|context) length")


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to decode. Generation ends only at ``stop_token_ids`` or ``max_tokens``, whatever the model folder says.

    ``seed`` makes a sampled request repeatable, whichever replica and batch it lands in; greedy decoding
    (``temperature`` 0) does not look at it. ``logprobs`` keeps log-probabilities of the first token: those of
    ``allowed_token_ids`` when given, otherwise those of the ``logprobs`` most likely tokens (0: the sampled one).
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. ``prompt_token_ids`` holds exactly one image placeholder when there is an ``image`` (RGB).

    ``sampling`` replaces the one given to `TextEngine.generate` for this request, for example to give each row and
    each candidate a seed of its own.
    """

    id: str
    prompt_token_ids: list[int]
    image: Image.Image | None = None
    sampling: SamplingSpec | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one request; ``token_ids`` include the stop token. With ``error`` the rest is empty.

    ``prompt_tokens`` counts image tokens; ``cached_tokens`` of them came from the prefix cache. ``mean_logprob`` is the
    mean natural log-probability of the generated tokens, None unless ``SamplingSpec.logprobs`` was set. ``seconds`` is
    how long the engine had it, None where that was not measured.
    """

    id: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    logprobs: dict[int, float] = field(default_factory=dict)
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    mean_logprob: float | None = None
    seconds: float | None = None

    @property
    def generated_tokens(self) -> int:
        """Tokens the model wrote, the stop token included."""
        return len(self.token_ids)

    @property
    def too_long(self) -> bool:
        """The prompt, image tokens included, does not fit into ``max_model_len``."""
        return self.error is not None and _TOO_LONG.search(self.error) is not None


class TextEngine(Protocol):
    """What the stages ask of an engine: `adamllm_ray.synthesis.engine.Engine`, or a stand-in of the fault tests."""

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """One completion per request, in the same order; ``sampling`` holds for requests without their own."""
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
