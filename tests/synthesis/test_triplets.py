from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted
from adamllm_ray.synthesis.triplets import Triplet, TripletParser, foreign_url, repeats, triplets
from tests.strategies import INFORMATIVE, PRECISE, QUESTION, responses
from tests.synthesis.fakes import turns

Q = QUESTION
WANTED = Triplet(Q, "It is a red circle.", "a circle")


@pytest.fixture(scope="module")
def parser(chat: ChatFormat) -> TripletParser:
    return TripletParser(chat)


@pytest.mark.parametrize("order", [(PRECISE, INFORMATIVE), (INFORMATIVE, PRECISE)])
def test_both_orders(parser: TripletParser, order: Any) -> None:
    assert parser.parse([*turns(parser.chat, *order), parser.end_id], "stop") == WANTED


def test_text_after_the_end_does_not_count(parser: TripletParser) -> None:
    ids = turns(parser.chat, PRECISE)
    assert parser.parse([*ids, parser.end_id, *parser.chat.user_open, *ids], "stop") is Verdict.RESPONSE_UNPARSABLE


def test_nothing_is_kept_of_a_response_that_was_cut(parser: TripletParser) -> None:
    chat = parser.chat
    whole = turns(chat, PRECISE, INFORMATIVE)
    third = [*whole[: -len(chat.turn_end)], *chat.user_open, *chat.text_ids("Answer with")]
    for ids in (whole[:-3], whole, third):
        assert parser.parse(ids, "length") is Verdict.RESPONSE_TRUNCATED
    assert parser.parse(third, "stop") == WANTED  # it ended by itself, in the middle of a third turn


def test_question_must_be_the_same(parser: TripletParser) -> None:
    other = (hinted(HINT_INFORMATIVE, "What is shown"), "It is a red circle.")
    assert parser.parse(turns(parser.chat, PRECISE, other), "stop") is Verdict.RESPONSE_UNPARSABLE
    assert parser.parse(turns(parser.chat, PRECISE, other, INFORMATIVE), "stop") == WANTED


def test_first_complete_question_comes_first() -> None:
    second = [(hinted(hint, "Where?"), hint) for hint in (HINT_PRECISE, HINT_INFORMATIVE)]
    where = Triplet("Where?", HINT_INFORMATIVE, HINT_PRECISE)
    assert triplets([PRECISE, *second, INFORMATIVE]) == [where, WANTED]
    assert triplets([PRECISE, (PRECISE[0], "b"), INFORMATIVE, INFORMATIVE]) == [WANTED]  # the first answers count
    assert triplets([(Q, "a"), (HINT_PRECISE, "b"), (HINT_INFORMATIVE, "c")]) == []


def test_normalised_questions_forgive_case_spaces_and_punctuation(parser: TripletParser) -> None:
    pairs = [(hinted(HINT_INFORMATIVE, "what is  shown"), "It is a red circle."), PRECISE]
    wanted = [Triplet("what is  shown", "It is a red circle.", "a circle")]
    assert triplets(pairs) == []
    assert triplets(pairs, "normalised") == wanted
    ids = [*turns(parser.chat, *pairs), parser.end_id]
    assert TripletParser(parser.chat, "normalised").read(ids, "stop").triplets == wanted
    assert triplets([PRECISE, (hinted(HINT_INFORMATIVE, "What is shown 2?"), "x")], "normalised") == []


CASES = {  # paper.md 2.4 and 2.5: (what follows two complete turns or stands for them, pairs, tasks)
    "two complete turns": (lambda chat, two: two, 2, 1),
    "cut in the middle of an answer": (lambda chat, two: two[: -len(chat.turn_end) - 1], 1, 0),
    "an open user header behind": (lambda chat, two: [*two, *chat.user_open[len(chat.turn_end) :]], 2, 1),
    "end of text spelled out behind": (lambda chat, two: [*two, *chat.text_ids("<|end_of_text|>")], 1, 0),
    "two assistant headers": (lambda chat, two: [*two[:-1], *chat.assistant_open, *chat.text_ids("x"), two[-1]], 1, 0),
    "only precise": (lambda chat, two: turns(chat, PRECISE, PRECISE), 2, 0),
    "no hints": (lambda chat, two: turns(chat, (Q, "a"), (Q, "b")), 2, 0),
    "one character differs": (lambda chat, two: turns(chat, PRECISE, (INFORMATIVE[0] + "?", "b")), 2, 0),
    "an empty answer": (lambda chat, two: turns(chat, PRECISE, (INFORMATIVE[0], " ")), 1, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_cases_of_the_papers_parser(parser: TripletParser, case: str) -> None:
    make, pairs, tasks = CASES[case]
    found = parser.read(make(parser.chat, turns(parser.chat, PRECISE, INFORMATIVE)), "stop")
    assert (found.pairs, len(found.triplets)) == (pairs, tasks)
    assert (found.verdict is None) == bool(tasks) == (found.detail is None)
    if not tasks:
        assert found.verdict is Verdict.RESPONSE_UNPARSABLE


def test_why_there_is_no_task_is_told(parser: TripletParser) -> None:
    def detail(*pairs: tuple[str, str]) -> str | None:
        return parser.read(turns(parser.chat, *pairs), "stop").detail

    assert detail(PRECISE) == "1 pairs (1 precise, 0 informative, 0 without a hint): none is informative"
    assert detail((Q, "a")) == "1 pairs (0 precise, 0 informative, 1 without a hint): none is precise or informative"
    other = (hinted(HINT_INFORMATIVE, "Where?"), "there")
    assert (
        detail(PRECISE, other)
        == "2 pairs (1 precise, 1 informative, 0 without a hint): no question is under both hints"
    )
    ids = parser.chat.text_ids("a question that nobody answers")
    assert parser.read(ids, "stop").detail == "1 turns, none of them a question with a finished answer"


def test_a_cut_response_gives_what_was_whole_only_where_asked(parser: TripletParser) -> None:
    ids = [*turns(parser.chat, PRECISE, INFORMATIVE)[: -len(parser.chat.turn_end)], *parser.chat.user_open, 300, 301]
    refused = parser.read(ids, "length")
    assert (refused.verdict, refused.segments, refused.pairs) == (Verdict.RESPONSE_TRUNCATED, 3, 2)
    using = TripletParser(parser.chat, use_cut=True)
    assert using.parse(ids, "length") == WANTED
    assert using.parse(turns(parser.chat, PRECISE), "length") is Verdict.RESPONSE_TRUNCATED


@pytest.mark.parametrize("text", ["", "  \n "])
def test_empty(parser: TripletParser, text: str) -> None:
    ids = parser.chat.text_ids(text)
    assert parser.parse([*ids, parser.end_id], "stop") is Verdict.RESPONSE_EMPTY
    assert parser.parse([], "length") is Verdict.RESPONSE_EMPTY


@pytest.mark.parametrize("token", ["<image>", "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"])
def test_stray_special_token_spoils_only_its_turn(parser: TripletParser, tokenizer: Any, token: str) -> None:
    stray = [tokenizer.convert_tokens_to_ids(token)]
    bad = [*parser.chat.text_ids("Q?"), *parser.chat.assistant_open, *stray, *parser.chat.text_ids("A")]
    ids = [*bad, *parser.chat.user_open, *turns(parser.chat, PRECISE, INFORMATIVE)]
    assert parser.parse(ids, "stop") == WANTED
    assert parser.parse([*bad, *parser.chat.turn_end], "stop") is Verdict.RESPONSE_UNPARSABLE


def test_spelled_out_special_tokens_are_text(parser: TripletParser) -> None:
    text = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<|end_of_text|>"
    pairs = [(hinted(hint, f"Read {text} aloud"), f"{text} {hint}") for hint in (HINT_PRECISE, HINT_INFORMATIVE)]
    found = parser.parse(turns(parser.chat, *pairs), "stop")
    assert found == Triplet(f"Read {text} aloud", f"{text} {HINT_INFORMATIVE}", f"{text} {HINT_PRECISE}")


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_ids_give_a_triplet_or_a_verdict(parser: TripletParser, data: st.DataObject) -> None:
    found = parser.parse(data.draw(responses(parser.chat)), data.draw(st.sampled_from(["stop", "length"])))
    assert isinstance(found, Triplet | Verdict)
    if isinstance(found, Triplet):
        assert found.question
        assert found.informative
        assert found.precise
    else:
        assert found.outcome == "rejected"


def test_chatml_tokenizers_end_text_with_their_pad(chat: ChatFormat) -> None:
    class Tokenizer:
        pad_token_id = 7
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    class Chatml:
        tokenizer = Tokenizer()
        turn_end = user_open = assistant_open = (3, 4)
        eos_id = 3

    assert TripletParser(Chatml()).end_id == 7  # type: ignore[arg-type]
    Tokenizer.pad_token_id = 3
    with pytest.raises(ModelError, match="ends a text"):
        TripletParser(Chatml())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "verdict"),
    [
        ([7] * 24, Verdict.RESPONSE_REPEATS),
        ([9, 9, 8, *[1, 2, 3, 4] * 6], Verdict.RESPONSE_REPEATS),
        ([*range(60), *list(range(64)) * 4], Verdict.RESPONSE_REPEATS),
        ([7] * 23, Verdict.RESPONSE_TRUNCATED),
        ([*[1, 2, 3, 4] * 6, 9], Verdict.RESPONSE_TRUNCATED),  # it went on
        ([*list(range(65)) * 4], Verdict.RESPONSE_TRUNCATED),
    ],
)
def test_endless_repetition_has_its_own_verdict(parser: TripletParser, ids: list[int], verdict: Verdict) -> None:
    shifted = [300 + token for token in ids]  # ordinary tokens
    assert parser.parse(shifted, "length") is verdict
    assert parser.parse(shifted, "stop") is Verdict.RESPONSE_UNPARSABLE


def test_a_task_that_was_finished_before_the_repetition_does_not_count(parser: TripletParser) -> None:
    ids = [*turns(parser.chat, PRECISE, INFORMATIVE)[: -len(parser.chat.turn_end)], *parser.chat.user_open, *[300] * 40]
    assert repeats(ids)
    assert parser.parse(ids, "length") is Verdict.RESPONSE_REPEATS


@pytest.mark.parametrize(
    ("answer", "caption", "url"),
    [
        ("see HTTP://evil.example/x.", "a boat", "http://evil.example/x"),
        ("see www.evil.example)", "a boat", "www.evil.example"),
        ("data ftp://h/x?y=1 here", "a boat ftp://h/x", "ftp://h/x?y=1"),
        ("the sign says www.Shop.example.", "A sign with WWW.shop.example on it", None),
        ("3 boats: 2 white, 1 blue (a/b)", "a boat", None),
    ],
)
def test_urls_that_the_caption_does_not_have(answer: str, caption: str, url: str | None) -> None:
    assert foreign_url(Triplet("what?", answer, "a"), caption) == url
    assert foreign_url(Triplet(answer, "what?", "a"), caption) == url
    assert foreign_url(Triplet("what?", "a", answer), caption) == url
