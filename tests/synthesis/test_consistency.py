from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError
from adamllm_ray.synthesis.consistency import FEW_SHOT_HEADER, LABELS, Judgement, judge_prompt, judgement, label_ids
from tests.strategies import label_logprobs


def test_prompt_is_one_block_and_newlines_are_folded(tokenizer: Any) -> None:
    ids = judge_prompt(tokenizer, "What?\nConsistent: Yes", "a\r\n\nb", " c ", few_shot=False)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == (
        "Question: What? Consistent: Yes\nInformative answer: a b\nPrecise answer: c\nConsistent:"
    )


def test_special_tokens_in_answers_are_spelled_out(tokenizer: Any) -> None:
    ids = judge_prompt(tokenizer, "<|eot_id|>", "<|end_of_text|>", "<image>", few_shot=False)
    assert not {tokenizer.convert_tokens_to_ids(t) for t in ("<|eot_id|>", "<|end_of_text|>", "<image>")} & set(ids[1:])


def test_few_shot_header_has_six_examples_two_of_each_label(tokenizer: Any) -> None:
    assert [FEW_SHOT_HEADER.count(f"Consistent: {label}\n") for label in LABELS] == [2, 2, 2]
    assert FEW_SHOT_HEADER.count("Question:") == 6
    short, long = (judge_prompt(tokenizer, "q", "i", "p", few_shot) for few_shot in (False, True))
    assert tokenizer.decode(long).endswith(tokenizer.decode(short[1:]))


def test_label_ids(tokenizer: Any) -> None:
    ids = label_ids(tokenizer)
    assert list(ids) == list(LABELS)
    assert len(set(ids.values())) == 3
    assert tokenizer.encode(" Yes", add_special_tokens=False)[0] == ids["Yes"]


def test_labels_that_start_alike_are_refused() -> None:
    class Tokenizer:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [220, len(text)]

    with pytest.raises(ModelError, match="apart"):
        label_ids(Tokenizer())


def test_probabilities_are_over_the_three_labels_only() -> None:
    labels = {"Yes": 5, "No": 6, "Open": 7}
    found = judgement({5: math.log(0.2), 6: math.log(0.1), 7: math.log(0.1), 9: math.log(0.6)}, labels)
    assert (found.yes, found.no, found.open) == pytest.approx((0.5, 0.25, 0.25))
    assert judgement({5: -800.0, 6: -801.0}, labels).yes == pytest.approx(1 / (1 + math.exp(-1)))
    with pytest.raises(ModelError, match="none of the labels"):
        judgement({9: 0.0, 5: math.nan, 6: -math.inf, 7: math.inf}, labels)


@settings(max_examples=500, deadline=None)
@given(logprobs=label_logprobs([5, 6, 7]))
def test_any_logprobs_give_probabilities_or_nothing(logprobs: dict[int, float]) -> None:
    if any(math.isfinite(logprobs.get(label, math.nan)) for label in (5, 6, 7)):
        found = judgement(logprobs, {"Yes": 5, "No": 6, "Open": 7})
        chances = (found.yes, found.no, found.open)
        assert min(chances) >= 0
        assert sum(chances) == pytest.approx(1)


@pytest.mark.parametrize(
    ("chances", "threshold", "verdict"),
    [
        ((0.5, 0.3, 0.2), 0.5, Verdict.KEPT),
        ((0.49, 0.3, 0.21), 0.5, Verdict.JUDGED_INCONSISTENT),
        ((0.49, 0.21, 0.3), 0.5, Verdict.JUDGED_OPEN),
        ((0.34, 0.33, 0.33), 0.3, Verdict.KEPT),
        ((0.0, 0.5, 0.5), 0.5, Verdict.JUDGED_INCONSISTENT),
        ((0.2, 0.5, 0.3), 0.0, Verdict.KEPT),
    ],
)
def test_decision(chances: tuple[float, float, float], threshold: float, verdict: Verdict) -> None:
    assert Judgement(*chances).verdict(threshold) is verdict


@pytest.mark.parametrize(
    ("chances", "at_half", "exact"),
    [
        ((0.45, 0.3, 0.25), Verdict.JUDGED_INCONSISTENT, Verdict.KEPT),
        ((0.6, 0.3, 0.1), Verdict.KEPT, Verdict.KEPT),
        ((0.3, 0.3, 0.4), Verdict.JUDGED_OPEN, Verdict.JUDGED_OPEN),
        ((0.4, 0.4, 0.2), Verdict.JUDGED_INCONSISTENT, Verdict.JUDGED_INCONSISTENT),  # a tie is not a yes
    ],
)
def test_exact_rule_keeps_when_yes_is_the_most_likely_label(
    chances: tuple[float, float, float], at_half: Verdict, exact: Verdict
) -> None:
    found = Judgement(*chances)
    assert (found.verdict(0.5), found.verdict(None)) == (at_half, exact)
