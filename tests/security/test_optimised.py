"""The guards under ``python -O``, which leaves every ``assert`` of the package out (reliability 61, CVE-2026-41523).

pytest turns the asserts of test modules into ``if ...: raise`` before they are compiled, so these still hold there;
asserts of other modules, the package's and the tests' helpers', are gone. Both are checked below.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "adamllm_ray"
MARK = "pytest.mark." + "guards"  # not in this file as a whole
QUICK = "not random and not ten_thousand and not bombs_are_refused and not sixteen_processes"  # others take too long
# Files in which an assert helps the type checker, and guards nothing.
ASSERTS = {"training/loop.py": 1}


def run(arguments: list[str], *options: str, cwd: Path = ROOT) -> tuple[int, dict[str, int], str]:
    """(exit code, how many passed, failed, ..., what was printed) of pytest in a process of its own."""
    command = [sys.executable, *options, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    last = done.stdout.strip().rpartition("\n")[2]
    return done.returncode, {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", last)}, done.stdout[-3000:]


@pytest.mark.timeout(900)
def test_the_guards_hold_without_asserts() -> None:
    """As many pass, fail and are skipped as with them."""
    files = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text()
    )
    assert len(files) > 10
    chosen = ["-m", "guards", "-k", QUICK, *files]
    code, with_asserts, said = run(chosen)
    assert code == 0, said
    code, without, said = run(chosen, "-O")
    assert code == 0, said
    outcomes = ("passed", "failed", "skipped", "xfailed", "xpassed", "error")
    assert {name: without.get(name) for name in outcomes} == {name: with_asserts.get(name) for name in outcomes}
    assert without["passed"] > 300
    print(f"guards: {with_asserts['passed']} passed, under python -O {without['passed']}")


def test_asserts_of_tests_are_still_asserts_there(tmp_path: Path) -> None:
    """Or the test above would prove nothing; and those of other modules are not, or it would be needless."""
    (tmp_path / "helper.py").write_text("def held(): assert False\n")
    (tmp_path / "test_one.py").write_text(
        "import helper\n\ndef test_fails(): assert 1 == 2\n\ndef test_passes(): helper.held()\n"
    )
    code, counts, said = run(["--rootdir", str(tmp_path), str(tmp_path)], "-O", cwd=tmp_path)
    assert (code, counts.get("failed"), counts.get("passed")) == (1, 1, 1), said


def test_no_guard_of_the_package_is_an_assert() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        if number := sum(isinstance(node, ast.Assert) for node in nodes):
            found[path.relative_to(PACKAGE).as_posix()] = number
        assert not any(isinstance(node, ast.Name) and node.id == "__debug__" for node in nodes), path
    assert found == ASSERTS
