from __future__ import annotations

from typing import Any

import pytest

from adamllm_ray.models.chat import ChatFormat


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from adamllm_ray.pocket.architecture import build_tokenizer
    from tests.conftest import TINY_TEXTS

    return build_tokenizer(TINY_TEXTS, 600)


@pytest.fixture(scope="session")
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer)
