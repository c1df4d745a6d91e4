from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamllm_ray.quality.questions import (
    KnownQuestions,
    bare,
    entropy,
    normal,
    opening,
    question_type,
    stands_in,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Is there a boat?", "yes/no"),
        ("Isn't it red?", "yes/no"),
        ("Can't you see it?", "yes/no"),
        ("On which side is the water?", "which"),
        ("What is shown?", "what"),
        ("How many boats are there?", "how many"),
        ("How much of the image is water?", "how many"),
        ("How old is she?", "how"),
        ("Whose hat is it?", "who"),
        ("Describe the image.", "describe"),
        ("Identify the organ.", "name"),
        ("What is it? (A) a cat (B) a dog", "choice"),
        ("Which organ? A: liver B: lung C: heart", "choice"),
        ("¿Qué se ve?", "other"),
        ("?!", "empty"),
        ("", "empty"),
    ],
)
def test_types_follow_from_the_opening(text, kind):
    assert question_type(text) == kind


PMC = "Question: Which organ is shown in the image? The choices are: A: Lung B: Heart C: Liver D: Kidney"


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (PMC, "Which organ is shown in the image?"),
        ("Q: What is it?\nOptions: (a) a cat (b) a dog", "What is it?"),
        ("Which organ? A: liver B: lung C: heart", "Which organ?"),
        ("What dish is it? 1. rice 2. soup", "What dish is it?"),
        ("Is the heart enlarged?", "Is the heart enlarged?"),
        ("A: the left one or B: the right one?", "A: the left one or B: the right one?"),
        ("Question: ", ""),
    ],
)
def test_a_template_around_a_question_is_taken_off(prompt, question):
    assert bare(prompt).strip() == question


def test_a_question_stands_in_its_prompt():
    prompt = "Look closely. Which organ is shown in the image? Answer with one word."
    assert stands_in("Which organ is shown?", prompt)
    assert not stands_in("Which organ is it?", prompt)
    assert not stands_in("in the image", prompt)  # too little to say anything
    assert not stands_in("organ is shown in the imag", prompt)


def test_normal_form_ignores_case_space_punctuation_and_compatibility():
    assert normal("  What,\nis THIS? ") == normal("what is this") == "what is this"
    assert normal("\N{FULLWIDTH LATIN CAPITAL LETTER A} \N{LATIN SMALL LIGATURE FI}n") == "a fin"
    assert opening("Is the sea blue?") == "is the"
    assert opening("") == ""


def test_entropy_in_bits():
    assert entropy([5, 5, 5, 5]) == 2.0
    assert entropy([7]) == 0.0
    assert entropy([]) == entropy([0]) == 0.0


def test_equal_and_near_questions_are_told_apart():
    known = KnownQuestions([("q1", "On which side is the water?"), ("q2", "On WHICH side is the water")], 0.6)
    assert len(known) == 1
    same, near = known.find("on which side is the water"), known.find("On which side is the water now?")
    assert same is not None
    assert (same.key, same.exact, same.similarity) == ("q1", True, 1.0)
    assert near is not None
    assert (near.key, near.exact) == ("q1", False)
    assert near.similarity == pytest.approx(11 / 13)
    assert known.find("What is the climate?") is None
    assert known.find("???") is None
    assert KnownQuestions([("q1", "On which side is the water?")], None).find("On which side is the water now?") is None


def test_the_order_of_words_counts():
    """The same words in another order are not equal, but near."""
    turned = "is the cat left of the dog"
    near = KnownQuestions([(1, "is the dog left of the cat")], 0.8).find(turned)
    assert near is not None
    assert not near.exact
    assert near.similarity == pytest.approx(11 / 13)
    assert KnownQuestions([(1, "is the dog left of the cat")], 0.9).find(turned) is None


WORDS = st.lists(st.sampled_from("is the a water land left right side many how".split()), min_size=1, max_size=8)  # noqa: SIM905


def _members(text):
    words = words_of(text)
    return {*words, *(f"{one} {two}" for one, two in pairwise(words))}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy with other things
@given(st.lists(WORDS, min_size=1, max_size=12), WORDS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_nothing_near_enough_is_missed(known, asked, threshold):
    """Prefix filtering against comparing all pairs."""
    texts, query = [" ".join(words) for words in known], " ".join(asked)
    best = max(len(_members(query) & _members(t)) / len(_members(query) | _members(t)) for t in texts)
    found = KnownQuestions(list(enumerate(texts)), threshold).find(query)
    assert (found is not None) == (best >= threshold)
    if found is not None:
        assert found.similarity == pytest.approx(best)
        assert found.exact == (query in texts)
