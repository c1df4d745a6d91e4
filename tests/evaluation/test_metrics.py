"""Every metric in both modes against scores worked out by hand (golden_metrics.txt), and what a table cannot say."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation.metrics import METRICS, Score, score
from adamllm_ray.evaluation.metrics.labels import read_yes_no
from adamllm_ray.evaluation.metrics.names import answer_names
from adamllm_ray.evaluation.metrics.options import draw, letters
from adamllm_ray.evaluation.metrics.rouge import lcs_length, published_f
from adamllm_ray.evaluation.metrics.text import conclusion, vocabulary, vqa_normalised, words


@dataclass
class Row:
    answer: str
    kind: str = "open"
    choices: tuple[str, ...] | None = None
    metric: str = "auto"
    id: str = "row/0"


def _golden():
    """(question, mode, prediction, expected score, why) of each line."""
    lists, cases = {"-": None}, []
    for number, line in enumerate(Path(__file__).with_name("golden_metrics.txt").read_text("utf-8").splitlines(), 1):
        if line.startswith("@"):
            name, _, value = line.partition(" = ")
            lists[name] = json.loads(value)
        elif line and not line.startswith("#"):
            metric, mode, kind, said, answer, choices, value, parsed, why = line.split(" | ")
            listed = lists[choices] if choices in lists else json.loads(choices)
            question = Row(json.loads(answer), kind, listed and tuple(listed), metric)
            expected = Score(float(Fraction(value)), {"yes": True, "no": False}[parsed])
            cases.append(
                pytest.param(question, mode, json.loads(said), expected, id=f"{number}: {metric} {mode} {why}")
            )
    return cases


GOLDEN = _golden()


@pytest.mark.parametrize(("question", "mode", "said", "expected"), GOLDEN)
def test_golden(question, mode, said, expected):
    found = score(said, question, mode)
    assert found.parsed == expected.parsed
    assert found.value == pytest.approx(expected.value, abs=1e-7)  # the package rouge adds 1e-8 to a denominator


def test_golden_cases_are_many_and_cover_every_metric_in_both_modes():
    seen = Counter((case.values[0].metric, case.values[1]) for case in GOLDEN)
    assert sum(seen.values()) >= 200
    assert {*seen} == {(name, mode) for name in METRICS for mode in ("paper", "strict")}
    assert min(seen.values()) >= 7


def test_unknown_metric_and_mode_are_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"'rouge'.*did you mean 'rouge_l'.*names_f1"):
        score("a", Row("a", metric="rouge"), "paper")
    with pytest.raises(ConfigError, match="'strict' or 'paper'"):
        score("a", Row("a"), "lenient")


def test_every_metric_says_what_its_figure_means():
    assert all(metric.protocol.keys() == {"paper", "strict"} for metric in METRICS.values())


def test_the_drawn_answer_depends_on_the_row_alone_and_is_fair():
    choices = ("one", "two", "three", "four")
    rows = [Row("A", choices=choices, metric="choice", id=f"pmc_vqa/{number}") for number in range(2000)]
    first = [score("", row, "paper").value for row in rows]
    assert first == [score("unreadable", row, "paper").value for row in rows]
    assert 440 <= sum(first) <= 560  # 500 expected, standard deviation 19
    assert not any(score("", row, "strict").value for row in rows)


def test_the_draw_is_that_of_pythons_generator_seeded_with_the_rows_number():
    labels = letters(None)
    for number in range(50):
        random.seed(number)
        assert labels[draw(labels, f"test-{number}")] == random.choice(labels)


@pytest.mark.parametrize(
    ("said", "answer", "f"),
    [  # printed by rouge 1.0.1 (Apache-2.0, PyPI): Rouge().get_scores(said, answer)[0]["rouge-l"]["f"]
        ("the cat sat on the mat. It was big.", "the mat was big. the cat", 0.7692307644970415),
        ("a c d.", "a b c. d", 0.8571428522448981),
        ("a b", "a b", 0.999999995),
    ],
)
def test_paper_rouge_is_that_of_the_package(said, answer, f):
    assert published_f(said, answer) == pytest.approx(f, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=70), st.lists(st.sampled_from("abc"), max_size=70))
def test_lcs_is_that_of_the_textbook(x, y):
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    assert lcs_length(x, y) == table[-1][-1]


ODD = ["(", "\\", "answer is", "\ud800", "a" * 100_000, "\0", "٣", "[" * 50_000, "²", "1" * 5000]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("name", METRICS)
def test_odd_texts_do_not_raise(name, text):
    for mode in ("paper", "strict"):
        for choices in (None, ("a", "("), (text[:9], "")):
            for row in (Row("yes", "closed", choices, name), Row("a", "open", choices, name), Row(text, "open")):
                found = score(text, row, mode)
                assert 0 <= found.value <= 1


def test_choices_with_punctuation_match_as_they_stand():
    assert score("about 50 % of it", Row("50 %", choices=("50 %", "5 %")), "strict").value == 1
    assert score("C++ (new)", Row("C++", choices=("C", "C++")), "strict").value == 1
    assert score("-5", Row("-5", choices=("-5", "5")), "strict").value == 1


def test_conclusion_and_words():
    assert conclusion("the answer is a; the Answer is  b").strip() == "b"
    assert words("\uff34he Two-story house, 3.5 m") == ["2", "story", "house", "3.5", "m"]
    assert read_yes_no("no, no") == "no"


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("It's a Dog.", "it's dog"),
        ("couldntve", "couldntve"),
        ("couldn'tve couldnt've", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),  # a slip of the public reference, kept
        ("a. " * 40, " ".join(["a."] * 8)),  # only the first 32 periods go: 32 bare articles, then "a." eight times
    ],
)
def test_vqa_normalisation(text, normalised):
    assert vqa_normalised(text) == normalised


def test_names_of_an_answer():
    assert answer_names(" egg;salt ,\n oil,") == ["egg", "salt", "oil"]
    assert answer_names('["fish, raw", "oil"]') == ["fish, raw", "oil"]
    row = Row("fish, raw", choices=("fish, raw", "fish"), metric="names_recall")
    assert score("fish, raw", row, "strict") == Score(1.0, True)


def test_a_vocabulary_is_made_once():
    assert vocabulary(["a", "b"], loose=True) is vocabulary(("a", "b"), loose=True)
    assert vocabulary(["a", "A"], loose=True).find("a") == {0}
