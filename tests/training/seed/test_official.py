"""The paper's draws by position, against numbers that its dossier has and ones written out here."""

from __future__ import annotations

from random import Random

from adamllm_ray.training.seed.official import official_draws
from adamllm_ray.training.seed.records import Asked, SeedImage


def images(count: int, task: str = "t") -> dict[str, SeedImage]:
    return {
        f"{task}{n}": SeedImage(f"{task}{n}", f"c{n}", [Asked("q", f"p{n}")], [Asked("Q", f"i{n}")], task)
        for n in range(count)
    }


def test_the_same_places_are_blank_in_every_task() -> None:
    found = official_draws(images(1000, "a") | images(60, "b"))
    for task, count in (("a", 1000), ("b", 60)):
        group = [f"{task}{number}" for number in range(count)]
        Random(42).shuffle(group)
        blank = [place for place, name in enumerate(group) if found[name].blank]
        assert blank[:6] == [31, 32, 43, 49, 55, 57]  # paper.md 1.2, item 8
        assert [found[name].dev for name in group] == [place >= 0.9 * count for place in range(count)]
    assert 0.105 < sum(found[f"a{n}"].blank for n in range(900)) / 900 < 0.12  # about 11 %, not 10


def test_turns_are_shuffled_by_a_running_number_of_usable_images() -> None:
    some = images(5)
    some["t1"].precise.clear()
    found = official_draws(some)
    assert found.keys() == {"t0", "t2", "t3", "t4"}
    for running, name in enumerate(("t0", "t2", "t3", "t4")):
        number = name[1:]
        pairs = [
            ("Answer with a precise response.\nq", f"p{number}"),
            ("Answer with an informative response.\nQ", f"i{number}"),
        ]
        Random(running).shuffle(pairs)
        wanted = [("user", "Describe the image."), ("assistant", f"c{number}")]
        for question, answer in pairs:
            wanted += [("user", question), ("assistant", answer)]
        assert found[name].turns == wanted
