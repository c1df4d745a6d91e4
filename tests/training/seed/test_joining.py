"""Turns of one image: hints, neighbours, and draws that depend on the id alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted, same_question
from adamllm_ray.synthesis.triplets import triplets
from adamllm_ray.training.seed.joining import drawn, shared, usable
from adamllm_ray.training.seed.records import Asked, SeedImage

IMAGE = SeedImage(
    "a.png",
    "A cat on a mat.",
    [Asked("What is it?", "cat"), Asked("Where?", "mat"), Asked("Only precise?", "yes")],
    [Asked("where", "It lies on a mat."), Asked("What is  it", "It is a cat.")],
)


def test_only_questions_with_both_answers_and_the_two_next_to_each_other() -> None:
    assert shared(IMAGE) == [("What is it?", "It is a cat.", "cat"), ("Where?", "It lies on a mat.", "mat")]
    orders = set()
    for number in range(60):
        turns = drawn(IMAGE, "question", 0.1, 0.1, seed=0, id=str(number)).turns
        assert turns[:2] == [("user", "Describe the image."), ("assistant", "A cat on a mat.")]
        asked = [text for role, text in turns[2:] if role == "user"]
        assert [text.partition("\n")[2] for text in asked[::2]] == [text.partition("\n")[2] for text in asked[1::2]]
        pairs = [(turns[at][1], turns[at + 1][1]) for at in range(2, len(turns), 2)]
        assert len(triplets(pairs[:2])) == len(triplets(pairs[2:])) == 1
        orders.add(tuple(asked))
    assert len(orders) == 8  # two orders of questions, two of the hints of each


def test_everything_about_the_image_shuffled() -> None:
    turns = drawn(IMAGE, "image", 0.1, 0.1, seed=0, id="x").turns
    assert sorted(text for role, text in turns[2:] if role == "user") == sorted(
        [hinted(HINT_PRECISE, one.question) for one in IMAGE.precise]
        + [hinted(HINT_INFORMATIVE, one.question) for one in IMAGE.informative]
    )
    assert len(turns) == 2 + 2 * 5
    assert len({str(drawn(IMAGE, "image", 0.1, 0.1, seed=0, id=str(n)).turns) for n in range(20)}) > 10


def test_what_an_image_may_lack() -> None:
    one = [Asked("q", "a")]
    assert usable(SeedImage("", "", [], one), "question") is Verdict.SEED_NO_PRECISE
    assert usable(SeedImage("", "", one, []), "image") is Verdict.SEED_NO_INFORMATIVE
    assert usable(SeedImage("", "", one, [Asked("r", "a")]), "question") is Verdict.SEED_UNPAIRED
    assert usable(SeedImage("", "", one, [Asked("r", "a")]), "image") is Verdict.OK


@settings(max_examples=100, deadline=None)
@given(id=st.text(min_size=1), blank=st.floats(0, 1), dev=st.floats(0, 1))
def test_draws_are_independent_of_each_others_shares(id: str, blank: float, dev: float) -> None:
    wanted = drawn(IMAGE, "question", 0.1, 0.1, seed=3, id=id)
    assert drawn(IMAGE, "question", blank, dev, seed=3, id=id).turns == wanted.turns
    assert drawn(IMAGE, "question", 0.1, dev, seed=3, id=id).blank == wanted.blank
    assert drawn(IMAGE, "question", blank, 0.1, seed=3, id=id).dev == wanted.dev


def test_shares_come_out() -> None:
    made = [drawn(IMAGE, "question", 0.1, 0.2, seed=0, id=str(number)) for number in range(4000)]
    assert 320 < sum(one.blank for one in made) < 480
    assert 700 < sum(one.dev for one in made) < 900
    assert 50 < sum(one.dev and one.blank for one in made) < 115


def test_same_question() -> None:
    assert same_question(" What, is\tIT ?") == same_question("what is it")
    assert same_question("?!") == "?!" != same_question("!?")
    assert same_question("Is it 3?") != same_question("Is it 4?")
