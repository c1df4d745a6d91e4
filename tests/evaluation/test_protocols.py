"""Runs that asked in different ways are told so; other images or choices under one id are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from adamllm_ray.cli import app
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.compare import Arm, compare
from adamllm_ray.evaluation.protocols import check_contents, differences, protocol_lines
from adamllm_ray.evaluation.stores import QuestionStore
from adamllm_ray.evaluation.tasks import Question

ABOUT = {"general": False, "split": "test", "protocol": "zero-shot, greedy, at most 64 tokens"}


def finished(place: Path, *, about: Any = None, prints: Any = None, backend: str = "vllm", **question: Any) -> str:
    """A run with three questions of task 'slake', evaluated as said."""
    stage = RunFolder(str(place)).stage("evaluate")
    stage.begin({"backend": "vllm", "dtype": "auto", "code": "1", **(prints or {})})
    changed = {"image": b"picture", "choices": ("yes", "no")} | question
    asked = [
        Question(f"slake/{n}", question=f"{n}?", answer="yes", type="open", kind="open", **changed) for n in range(3)
    ]
    QuestionStore(stage).fill(asked)
    rows = [
        {"question_id": one.id, "model": "adapted", "task": "slake", "type": "open", "kind": "open", "metric": "recall"}
        | {
            "question": one.question,
            "answer": one.answer,
            "backend": backend,
            "score_strict": 0.5,
            "parsed_strict": True,
        }
        | {"score_paper": 1.0, "parsed_paper": n > 0}
        for n, one in enumerate(asked)
    ]
    stage.fs.create_dir(stage.data, recursive=True)
    pq.write_table(pa.Table.from_pylist(rows), f"{stage.data}/predictions.parquet", filesystem=stage.fs)
    scores = {"tasks": {"slake": ABOUT | (about or {})}}
    stage.finish(rows_in=3, verdicts={"ok": 3}, extra={"scores": scores}, seconds=1.0)
    return str(place)


def test_runs_alike_have_a_line_and_no_warning(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name) for name in ("a", "b")]
    assert protocol_lines(runs, ["slake"]) == ["slake: split: test; zero-shot, greedy, at most 64 tokens; run by vllm"]
    assert differences(runs, ["slake"]) == []
    assert check_contents(runs, {"slake/0", "slake/1", "slake/2"}) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"about": {"protocol": "zero-shot, greedy, at most 8 tokens"}}, "slake: protocol differs"),
        ({"about": {"split": "validation"}}, "slake: split differs"),
        ({"backend": "transformers"}, "slake: what ran the model differs"),
        ({"prints": {"dtype": "bfloat16"}}, "evaluation.engine.dtype differs"),
        ({"prints": {"code": "2"}}, "version of the code that reads and scores answers differs"),
    ],
)
def test_what_was_done_differently_is_told(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", **changed)
    found = compare(Arm((a,)), Arm((b,)), samples=50)
    [told] = found.warnings
    assert words in told
    assert f"in {a};" in told
    assert told.endswith(f"in {b}")
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", a, b])
    assert f"warning: {told}" in shown.output.replace("\n", "")


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"image": b"other"}, "another image"), ({"choices": ("no", "yes")}, "another list of choices")],
)
def test_other_images_or_choices_under_one_id_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", **changed)
    with pytest.raises(SourceError, match=rf"slake/0.*{words}.*cannot be compared"):
        compare(Arm((a,)), Arm((b,)), samples=50)


def test_a_run_that_kept_no_questions_is_told(tmp_path: Path) -> None:
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b")
    stage = RunFolder(b).stage("evaluate")
    stage.fs.delete_dir(f"{stage.path}/questions")
    assert check_contents([a, b], {"slake/0"}) == [
        f"whether {b} had the same images and choices cannot be told: it kept no questions"
    ]
    assert check_contents([b, b], {"slake/0"}) == []


def test_both_modes_stand_side_by_side(tmp_path: Path) -> None:
    run = finished(tmp_path / "a")
    found = compare(Arm((run,)), Arm((run,)), samples=50)
    assert [(one.type, one.n) for one in found.modes] == [("open", 3), ("all questions", 3), ("mean over types", 3)]
    assert found.modes[0].means == {"strict": (0.5, 0.5), "paper": (1.0, 1.0)}
    assert found.modes[0].unparsable == {"strict": (0, 0), "paper": (1, 1)}
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["compare", run, run]).output
    [row] = [line for line in shown.splitlines() if line.split()[:3] == ["slake", "open", "3"] and "[" not in line]
    assert row.split()[3:] == ["50.0", "50.0", "+0.0", "0/0", "100.0", "100.0", "+0.0", "1/1"]
    assert "slake: split: test; zero-shot, greedy, at most 64 tokens; run by vllm" in shown
