"""General pictures: deterministic, and their facts hold on the mask they were painted from."""

from random import Random

import numpy as np

from adamllm_ray.pocket import language, regions, world


def test_a_picture_depends_on_its_number_only():
    first, again, other = world.picture(7), world.picture(7), world.picture(8)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.facts == again.facts
    assert not np.array_equal(first.pixels, other.pixels)


def test_facts_are_true_of_the_regions():
    for number in range(60):
        made = world.picture(number)
        masks = {made.front: made.mask, made.back: ~made.mask}
        for fact in made.facts:
            if fact.noun in masks and fact.kind in ("side", "count", "share"):
                assert getattr(regions, fact.kind)(masks[fact.noun]) == fact.value
        assert made.pixels.shape == (60, 60, 3)
        assert made.pixels.dtype == np.uint8


def test_types_are_read_about_in_most_texts():
    texts = [world.text_facts(Random(seed)) for seed in range(400)]
    assert 0.65 < sum(any(fact.kind == "type" for fact in facts) for facts in texts) / 400 < 0.85
    types = [fact for facts in texts for fact in facts if fact.kind == "type"]
    strange = sum(fact.values != world.TYPES[fact.noun] for fact in types) / len(types)
    assert 0.3 < strange < 0.6  # a value that the noun does not have must be read
    for facts in texts:
        assert 3 <= len(facts) <= 4
        assert all(fact.value in fact.values for fact in facts)
        assert len({(fact.kind, fact.noun) for fact in facts}) == len(facts)


def test_hard_kinds_are_asked_about_more_often():
    facts = [language.side("water", "left"), language.half("higher", "upper")]
    asked = world.asked_about(facts, 2000, Random(0))
    assert sum(fact.kind == "half" for fact in asked) > 1300


def test_no_word_of_the_general_world_comes_with_a_satellite_picture():
    shown = {fact.noun for number in range(200) for fact in world.picture(number).facts}
    assert not shown & {"water", "land", "climate", "higher"}
