"""The shipped chips, and what a source's fingerprint notices."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources import read_pairs, source_fingerprint
from tests import hostile
from tests.data.sources.reading import PNG, loaded, parquet

pytestmark = pytest.mark.timeout(60)


def test_pocket_pairs_are_read_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    def training_pairs(limit: int | None, *, hold_back: bool) -> Any:
        assert not hold_back
        for number in range(limit or 5):
            yield SimpleNamespace(key=f"k{number}", image_bytes=bytes([number]), caption="c", meta={"n": number})

    module = ModuleType("adamllm_ray.pocket.domain")
    module.training_pairs = training_pairs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "adamllm_ray.pocket.domain", module)
    found = list(read_pairs(DataSection(format="pocket", limit=3)))
    assert [(pair.key, loaded(pair)) for pair in found] == [("k0", b"\0"), ("k1", b"\1"), ("k2", b"\2")]


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    folder = hostile.write_folder(tmp_path / "s", {}, [hostile.share_gpt("a.png", "C")])
    section = DataSection(path=str(folder))
    first = source_fingerprint(section)
    assert source_fingerprint(section) == first
    hostile.write_folder(folder, {}, [hostile.share_gpt("a.png", "D")])
    assert source_fingerprint(section) != first
    file = parquet(tmp_path / "p", {"image": [PNG], "caption": ["c"]})
    section = DataSection(format="parquet", path=str(file))
    first = source_fingerprint(section)
    parquet(tmp_path / "p", {"image": [PNG], "caption": ["d"]})
    assert source_fingerprint(section) != first


def test_pocket_fingerprint_is_its_code() -> None:
    print_of_code = source_fingerprint(DataSection(format="pocket"))
    assert len(print_of_code["pocket"]) == 16
