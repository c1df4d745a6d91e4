"""The mutations of tests/mutations.py still fit the source; that their tests fail is for that script to show."""

from __future__ import annotations

import re

import pytest

from tests.mutations import MUTATIONS, ROOT

pytestmark = pytest.mark.guards


def test_each_guard_has_one_mutation() -> None:
    assert len({each.guard for each in MUTATIONS}) == len(MUTATIONS) >= 50


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.guard)
def test_guard_and_test_are_where_the_mutation_says(mutation) -> None:
    source = (ROOT / "adamllm_ray" / mutation.file).read_text("utf-8")
    assert source.count(mutation.old) == 1
    compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    file, _, name = mutation.test.split(" ")[0].partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE)


def test_the_page_has_each_of_them() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    assert [each.guard for each in MUTATIONS if f"| {each.guard} | `{each.test}` |" not in page] == []
