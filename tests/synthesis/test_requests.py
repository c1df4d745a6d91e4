from __future__ import annotations

import random

import pytest

from adamllm_ray.errors import RowAccountingError
from adamllm_ray.synthesis.requests import Completion, Request, match_completions

pytestmark = pytest.mark.guards

REQUESTS = [Request(str(number), [1]) for number in range(30)]


def test_completions_come_back_in_the_order_of_the_requests() -> None:
    shuffled = random.Random(0)
    for _ in range(1000):
        answers = [Completion(request.id, finish_reason=request.id) for request in REQUESTS]
        shuffled.shuffle(answers)
        assert [answer.finish_reason for answer in match_completions(REQUESTS, answers)] == [one.id for one in REQUESTS]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([str(number) for number in range(29)], "lost request 29"),
        ([str(number) for number in range(30)] + ["7"], "7 twice"),
        ([str(number) for number in range(30)] + ["x"], "x, which nobody asked"),
    ],
)
def test_missing_doubled_and_foreign_rows_are_named(ids: list[str], words: str) -> None:
    with pytest.raises(RowAccountingError, match=words):
        match_completions(REQUESTS, [Completion(name) for name in ids])


def test_two_requests_with_one_id_are_refused() -> None:
    with pytest.raises(RowAccountingError, match="same id"):
        match_completions([REQUESTS[0], REQUESTS[0]], [Completion("0")])


def test_counts_and_reasons_of_a_completion() -> None:
    assert Completion("a", [5, 6, 2]).generated_tokens == 3
    assert Completion("a", error="VLLMValidationError: ... maximum context length is 256").too_long
    assert not Completion("a", error="ValueError: something else").too_long
