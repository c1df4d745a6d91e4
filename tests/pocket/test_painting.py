"""Shapes and paint of general pictures: parts of every size, regions that can be told apart, rough surfaces."""

from __future__ import annotations

import numpy as np

from adamllm_ray.pocket import painting, regions


def test_coasts_have_smaller_parts_than_blobs() -> None:
    def smallest(draw: object) -> float:
        random = np.random.default_rng(0)
        found = []
        while len(found) < 60:
            mask = draw(random)  # type: ignore[operator]
            if regions.count(mask) == "two":
                found.append(min(share for share in regions._part_shares(mask) if share >= regions.VISIBLE_SHARE))
        return float(np.quantile(found, 0.25))

    assert smallest(painting._coast) < smallest(painting._blobs)


def test_both_shapes_are_drawn_and_a_coast_covers_what_it_should() -> None:
    random = np.random.default_rng(0)
    covered = [float(painting._coast(random).mean()) for _ in range(200)]
    assert 0.1 < min(covered) < 0.2
    assert 0.8 < max(covered) < 0.9
    assert painting.shape(random).shape == (60, 60)


def test_two_colours_are_told_apart_without_hue() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        front, back = (np.dot(painting.COLOURS[name], painting.LUMINANCE) for name in painting.two_colours(random))
        assert abs(front - back) >= painting.TOLD_APART


def test_a_rough_surface_is_as_bright_as_a_plain_one() -> None:
    random = np.random.default_rng(0)
    fields = np.stack([painting._surface(random) for _ in range(200)])
    assert abs(fields.mean() - 1) < 0.03
    assert 0.1 < np.abs(fields - 1).mean() < 0.2
    assert fields.min() >= 0.3


def test_paint_keeps_the_colours_apart() -> None:
    mask = np.zeros((60, 60), bool)
    mask[:, :30] = True
    for number in range(20):
        pixels = painting.paint(mask, "red", "white", "plain", None, np.random.default_rng(number))
        assert pixels.dtype == np.uint8
        greens = pixels[..., 1].astype(float)
        assert greens[~mask].mean() > greens[mask].mean() + 40
