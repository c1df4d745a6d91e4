"""Shared fixtures: tiny random models, a bucket. Expensive things are made once per session; long files go first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import local_bucket

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # the suite is the only work here

TINY_TEXTS = [
    "Describe the image. Answer with a precise response. Answer with an informative response.",
    "a red circle left of a blue square. Question: what is shown? Answer: a circle. Consistent: Yes No Open",
    "user assistant \n\n 0 1 2 3 4 5 6 7 8 9",
] * 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with engines and clusters first: of two files at a time, short ones fill the time of the last long one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a LLaVA-NeXT with random weights (0.3 M parameters): right in form, meaningless in content."""
    from adamllm_ray.pocket.architecture import build_tokenizer
    from adamllm_ray.pocket.standins import tiny_llava_next

    return tiny_llava_next(build_tokenizer(TINY_TEXTS, 600), tmp_path_factory.mktemp("tiny") / "vlm")


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a text-only Llama with random weights and the same tokenizer."""
    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.architecture import Size, build_judge, build_tokenizer

    tokenizer = build_tokenizer(TINY_TEXTS, 600)
    folder = tmp_path_factory.mktemp("tiny") / "judge"
    return export_model(build_judge(len(tokenizer), Size(hidden=64, layers=2, mlp=128)), tokenizer, folder)


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2-VL with random weights and the same tokenizer."""
    from adamllm_ray.pocket.architecture import build_tokenizer
    from adamllm_ray.pocket.standins import tiny_qwen2_vl

    return tiny_qwen2_vl(build_tokenizer(TINY_TEXTS, 600), tmp_path_factory.mktemp("tiny") / "qwen")


@pytest.fixture(scope="session")
def tiny_llama_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Mllama (Llama 3.2 Vision) with random weights and the same tokenizer."""
    from adamllm_ray.pocket.architecture import build_tokenizer
    from adamllm_ray.pocket.standins import tiny_mllama

    return tiny_mllama(build_tokenizer(TINY_TEXTS, 600), tmp_path_factory.mktemp("tiny") / "mllama")


@pytest.fixture(scope="session")
def tiny_idefics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an Idefics3 with random weights and the same tokenizer, with a few tokens more."""
    from adamllm_ray.pocket.architecture import build_tokenizer
    from adamllm_ray.pocket.standins import tiny_idefics3

    return tiny_idefics3(build_tokenizer(TINY_TEXTS, 600), tmp_path_factory.mktemp("tiny") / "idefics")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket on an S3 server (moto), for the tests of a module."""
    with local_bucket() as made:
        yield made
