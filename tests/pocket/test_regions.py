"""Shape facts on hand-made masks."""

import numpy as np
import pytest

from adamllm_ray.pocket import regions


def mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """60 x 60, True inside the (top, bottom, left, right) boxes."""
    made = np.zeros((60, 60), bool)
    for top, bottom, left, right in boxes:
        made[top:bottom, left:right] = True
    return made


@pytest.mark.parametrize(
    ("box", "where"),
    [((0, 60, 0, 25), "left"), ((0, 60, 35, 60), "right"), ((0, 25, 0, 60), "top"), ((35, 60, 0, 60), "bottom")],
)
def test_side_is_where_the_region_leans(box, where):
    assert regions.side(mask(box)) == where


def test_side_is_not_stated_for_a_corner_or_a_speck():
    assert regions.side(mask((0, 30, 0, 30))) is None
    assert regions.side(mask((0, 5, 0, 5))) is None


def test_count_ignores_specks_and_refuses_doubtful_parts():
    parts = [(5, 15, 5, 15), (30, 40, 30, 40)]
    assert regions.count(mask(*parts)) == "two"
    assert regions.count(mask(*parts, (50, 52, 50, 52))) == "two"
    assert regions.count(mask(*parts, (50, 54, 50, 54))) is None
    assert regions.count(mask()) is None


def test_island_touches_no_border():
    assert regions.island(mask((20, 40, 20, 40))) is True
    assert regions.island(mask((0, 40, 0, 60))) is False
    assert regions.island(mask((20, 22, 20, 22))) is None


@pytest.mark.parametrize(("rows", "word"), [(50, "most"), (30, "half"), (10, "little"), (20, None), (1, None)])
def test_share_keeps_away_from_its_limits(rows, word):
    assert regions.share(mask((0, rows, 0, 60))) == word
