"""Captions, questions and both answers state the same fact."""

from random import Random

import pytest

from adamllm_ray.pocket import language, world
from adamllm_ray.pocket.language import Fact

FACTS = [
    language.side("water", "left"),
    language.count("land", "two"),
    language.island("land", True),
    language.island("land", False),
    language.half("higher", "upper"),
    language.type_of("water", "lake", ("lake", "sea")),
    language.share("land", "most"),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.kind}-{fact.value}")
def test_every_wording_names_the_value(fact: Fact):
    for style in language.styles(fact):
        told = language.sentence(fact, style, fact.other(Random(0))).lower()
        assert fact.value in told or fact.kind == "island"
    asked = language.open_question(fact)
    assert asked.precise == fact.value
    assert fact.value in asked.informative.lower() or fact.kind == "island"


def test_closed_question_is_yes_exactly_for_the_value():
    fact = language.side("water", "left")
    answers = {value: language.closed_question(fact, value).precise for value in fact.values}
    assert answers == {"left": "yes", "right": "no", "top": "no", "bottom": "no"}


def test_the_task_is_about_the_fact_the_caption_leads_with():
    for seed in range(200):
        random = Random(seed)
        caption, task = language.caption_and_task(world.text_facts(random), random)
        first = caption.split(". ")[0].lower().rstrip(".")
        assert (", not" in first) == (task.precise == "no" and task.asked is not None)
        assert " or " not in first
        if task.kind == "open":
            assert task.precise in first


def test_a_vague_caption_has_a_task_that_contradicts_itself():
    true_first = []
    for seed in range(300):
        random = Random(seed)
        [fact] = random.sample([fact for fact in FACTS if "or" in language.styles(fact)], 1)
        caption, task = language.caption_and_task([fact], random, vague=1.0)
        assert " or " in caption
        assert task.text == language.open_question(fact).text
        words = task.informative.replace(".", "").replace(",", "").split()
        explained = next(value for value in fact.values if value in words)
        assert fact.value in {task.precise, explained}
        assert task.precise != explained
        assert caption.lower().index(explained) < caption.lower().rindex(task.precise)
        true_first.append(explained == fact.value)
    assert 100 < sum(true_first) < 200


def test_so_many_captions_are_vague_and_the_forms_of_the_others_stay():
    styles = [language._style(FACTS[0], Random(seed), 0.25) for seed in range(4000)]
    shares = {style: styles.count(style) / len(styles) for style in language.styles(FACTS[0])}
    assert shares == pytest.approx({"plain": 0.375, "sure": 0.1875, "not": 0.1875, "or": 0.25}, abs=0.03)


def test_other_is_never_the_value():
    for fact in FACTS:
        assert fact.other(Random(1)) in set(fact.values) - {fact.value}
