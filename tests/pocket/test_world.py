"""General pictures: deterministic, and their facts hold on the mask they were painted from."""

import numpy as np

from adamllm_ray.pocket import regions, world


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


def test_no_word_of_the_general_world_comes_with_a_satellite_picture():
    shown = {fact.noun for number in range(200) for fact in world.picture(number).facts}
    assert not shown & {"water", "land", "climate", "higher"}
