"""Seed files of the pocket world: what is renamed stays true, and every second caption is."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from adamllm_ray.pocket import painting, seeds, world


def test_other_names_keep_what_is_said() -> None:
    for number in range(40):
        facts = world.picture(number).facts
        told = seeds.renamed(facts, Random(number))
        assert [fact.kind for fact in told] == [fact.kind for fact in facts]
        assert not {fact.noun for fact in told} & painting.COLOURS.keys()
        names: dict[str, set[str]] = {}
        for before, after in zip(facts, told, strict=True):
            names.setdefault(before.noun, set()).add(after.noun)
            if before.kind != "type":
                assert after.value == before.value
            assert after.value in after.values
        assert all(len(after) == 1 for after in names.values())


def test_every_second_caption_has_other_names(tmp_path: Path) -> None:
    files = seeds.write_seed(tmp_path, 20)
    captions = json.loads(Path(files["captions"]).read_text())
    coloured = [any(colour in one["caption"].lower().split() for colour in painting.COLOURS) for one in captions]
    assert sum(coloured) >= 8
    assert not any(coloured[::2])
