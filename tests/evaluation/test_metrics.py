from dataclasses import dataclass

import pytest

from adamllm_ray.evaluation.metrics import Score, conclusion, recall, score, words


@dataclass
class Row:
    answer: str
    kind: str = "open"
    choices: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    ("prediction", "answer", "value", "parsed"),
    [
        ("Yes", "yes", 1, True),
        ("no.", "No", 1, True),
        ("This is normal, I know it is not.", "no", 0, False),  # substrings are not words
        ("yes or no", "yes", 0, False),  # hedging
        ("", "yes", 0, False),
        ("There is no island here. Therefore, the answer is yes.", "yes", 1, True),
        ("The answer is yes. Wait, the answer is: No", "no", 1, True),
        ("no no no", "no", 1, True),
        ("no", "yes", 0, True),
    ],
)
def test_closed(prediction, answer, value, parsed):
    assert score(prediction, Row(answer, "closed")) == Score(value, parsed)


@pytest.mark.parametrize(
    ("prediction", "answer", "value", "parsed"),
    [
        ("north west", "north west", 1, True),
        ("north west", "north", 0, True),  # the longer choice wins
        ("It lies to the North.", "north", 1, True),
        ("north or east", "north", 0, False),
        ("northern", "north", 0, False),
        ("somewhere", "north", 0, False),
        ("north? The answer is east", "east", 1, True),
        ("north west and north", "north west", 0, False),
    ],
)
def test_choices(prediction, answer, value, parsed):
    choices = ("north", "east", "north west")
    assert score(prediction, Row(answer, "open", choices)) == Score(value, parsed)


def test_choices_with_punctuation_match_as_they_stand():
    assert score("about 50 % of it", Row("50 %", "open", ("50 %", "5 %"))).value == 1
    assert score("C++ (new)", Row("C++", "open", ("C", "C++"))).value == 1


@pytest.mark.parametrize(
    ("prediction", "answer", "value", "share"),
    [
        ("The lake.", "a lake", 1, 1.0),
        ("I see a large lake", "lake", 1, 1.0),
        ("lake lake", "blue lake", 0, 0.5),  # repeating a word does not help
        ("three islands", "3 islands", 1, 1.0),
        ("1,000 m", "1000 m", 1, 1.0),
        ("sea", "lake", 0, 0.0),
    ],
)
def test_free_text(prediction, answer, value, share):
    assert score(prediction, Row(answer)) == Score(value, True, share)


def test_empty_free_text_is_unparsable():
    assert score(" ... ", Row("lake")) == Score(0, False, 0.0)


def test_closed_question_with_another_answer_is_free_text():
    assert score("CT", Row("CT", "closed")).value == 1


def test_conclusion_and_words():
    assert conclusion("the answer is a; the Answer is  b").strip() == "b"
    assert words("\uff34he Two-story house, 3.5 m") == ["2", "story", "house", "3.5", "m"]
    assert recall([], []) == 0.0


@pytest.mark.parametrize("text", ["(", "\\", "answer is", "\ud800", "a" * 100_000])
def test_odd_predictions_do_not_raise(text):
    for row in (Row("yes", "closed"), Row("a", "open", ("a", "(")), Row("a")):
        assert score(text, row).value in (0, 1)
