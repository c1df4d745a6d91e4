"""`adamllm compare`: pairing, pooling, what is left out, what is refused, from run folders on disk and on S3."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from adamllm_ray.cli import app
from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, RowAccountingError, SourceError, StorageError
from adamllm_ray.evaluation.compare import Arm, compare, left_out
from adamllm_ray.evaluation.intervals import mcnemar_exact, wilson_interval

GROUPS = {("slake", "open"): 60, ("slake", "closed"): 80, ("recipe1m", "open"): 40}


def _rows(skill, seed=0, model="adapted", groups=GROUPS, drop=()):
    """Answers of one model: 0/1 for closed questions, graded for open ones."""
    rng, rows = np.random.default_rng(seed), []
    for (task, kind), count in groups.items():
        for number in range(count):
            value = float(rng.random() < skill) if kind == "closed" else float(np.clip(rng.normal(skill, 0.2), 0, 1))
            name = f"{task}/{kind}/{number}"
            if name not in drop:
                rows.append(_row(name, model, task, kind, value))
    return rows


def _row(name, model, task, kind, value, **more):
    row = {"id": f"{model}/{name}", "question_id": name, "model": model, "task": task, "type": kind, "kind": kind}
    row |= {"question": f"Q {name}?", "answer": "yes", "metric": "auto"}
    row |= {"prediction": "", "verdict": "ok", "score_strict": value, "parsed_strict": value > 0.01}
    return row | {"score_paper": value, "parsed_paper": True} | more


def _finished(place, rows, general=()):
    """A run folder whose evaluate stage is finished with these rows, in two files."""
    run = RunFolder(str(place))
    stage = run.stage("evaluate")
    stage.begin({"made": "by a test"})
    for number, part in enumerate((rows[::2], rows[1::2])):
        if part:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(part), sink)
            target = stage.place.child(f"data/part-{number}.parquet")
            storage.make_folder(stage.place.child("data"))
            storage.write_small(target, sink.getvalue())
    tasks = {name: {"general": name in general} for name in {row.get("task", "") for row in rows}}
    stage.finish(rows_in=len(rows), verdicts={"ok": len(rows)}, seconds=1.0, extra={"scores": {"tasks": tasks}})
    return str(place)


def _arm(*runs, model="adapted"):
    return Arm(tuple(runs), model)


@pytest.fixture
def two(tmp_path):
    return _finished(tmp_path / "a", _rows(0.4, 1)), _finished(tmp_path / "b", _rows(0.7, 2))


def test_table_average_and_verdict(two):
    found = compare(_arm(two[0]), _arm(two[1]), samples=2000)
    assert [(line.task, line.type, line.n) for line in found.lines] == [
        ("recipe1m", "open", 40),
        ("slake", "closed", 80),
        ("slake", "open", 60),
    ]
    assert [line.difference.test for line in found.lines] == ["paired bootstrap", "exact McNemar", "paired bootstrap"]
    closed = found.lines[1]
    first, second = (
        [row["score_strict"] for row in _rows(skill, seed) if row["question_id"].startswith("slake/closed")]
        for skill, seed in ((0.4, 1), (0.7, 2))
    )
    assert closed.a == wilson_interval(int(sum(first)), 80)
    assert closed.difference.p == mcnemar_exact(first, second)
    assert closed.unparsable == (first.count(0.0), second.count(0.0))
    assert found.average.difference.value == pytest.approx(np.mean([one.difference.value for one in found.lines]))
    assert found.overall.n == found.average.n == 180
    assert found.verdict.startswith("B is better than A by ")
    assert "B is better on recipe1m / open, slake / closed, slake / open" in found.groups_verdict
    assert left_out(found) == []


def test_the_other_way_round_is_the_same_with_the_sign_changed(two):
    there, back = (compare(_arm(a), _arm(b), samples=1000) for a, b in (two, two[::-1]))
    assert there.average.difference.value == pytest.approx(-back.average.difference.value)
    assert there.lines[1].difference.p == back.lines[1].difference.p
    assert back.verdict.startswith("A is better than B by ")


def test_a_run_against_itself_shows_no_difference(two):
    found = compare(_arm(two[0]), _arm(two[0]), samples=500)
    assert found.verdict.startswith("No difference can be told: B - A is +0.0 points")
    assert found.average.difference.p == 1.0
    assert "no difference can be told on 3 of 3 groups" in found.groups_verdict


def test_the_forgetting_check_stands_apart(tmp_path):
    runs = [_finished(tmp_path / name, _rows(skill, 1), ["recipe1m"]) for name, skill in (("a", 0.4), ("b", 0.7))]
    found = compare(_arm(runs[0]), _arm(runs[1]), samples=500)
    assert [line.task for line in found.lines] == ["slake", "slake"]
    assert [(line.task, line.n) for line in found.general] == [("recipe1m", 40)]
    assert (found.overall.n, found.average.n) == (140, 140)
    both = _finished(tmp_path / "c", _rows(0.4, 1), ["recipe1m", "slake"])
    with pytest.raises(SourceError, match="none is of the domain"):
        compare(_arm(both), _arm(runs[1]))


def test_seeds_are_pooled_by_question(tmp_path):
    arms = (("a", 0.4, (1, 2, 3)), ("b", 0.6, (4, 5)))
    runs = [[_finished(tmp_path / f"{name}{i}", _rows(skill, i)) for i in seeds] for name, skill, seeds in arms]
    found = compare(_arm(*runs[0]), _arm(*runs[1]), samples=1000)
    assert found.overall.n == 180
    assert [len(means) for means in found.run_means] == [3, 2]
    assert found.overall.a.value == pytest.approx(np.mean(found.run_means[0]))
    assert found.lines[1].difference.test == "paired bootstrap"  # means over seeds are graded
    alone = compare(_arm(runs[0][0]), _arm(runs[1][0]), samples=1000)
    pooled, single = (one.overall.difference for one in (found, alone))
    assert pooled.hi - pooled.lo < single.hi - single.lo


def test_questions_that_are_not_in_every_run_are_counted_and_named(tmp_path):
    a = _finished(tmp_path / "a", _rows(0.4, 1, drop={"slake/open/3"}))
    b = _finished(tmp_path / "b", _rows(0.6, 2, drop={f"slake/closed/{i}" for i in range(7)}))
    c = _finished(tmp_path / "c", _rows(0.6, 3, drop={"recipe1m/open/0"}))
    found = compare(_arm(a), _arm(b, c), samples=500)
    assert found.overall.n == 180 - 1 - 7 - 1
    closed = [f"slake/closed/{i}" for i in range(7)]
    assert found.missing == [(a, ["slake/open/3"]), (b, closed), (c, ["recipe1m/open/0"])]
    told = left_out(found)
    assert told[1] == f"left out: 7 that {b} was not asked: {', '.join(closed[:5])} and 2 more"


def test_an_unusable_question_is_left_out_of_both_sides_and_named(tmp_path):
    rows = _rows(0.4, 1)
    rows[0] |= {"score_strict": None, "score_paper": None, "parsed_strict": None, "parsed_paper": None}
    a, b = _finished(tmp_path / "a", rows), _finished(tmp_path / "b", _rows(0.6, 2))
    found = compare(_arm(a), _arm(b), samples=500)
    assert found.unusable == ["slake/open/0"]
    assert found.overall.n == 179
    assert "slake/open/0" in left_out(found)[0]


@pytest.mark.parametrize(
    ("column", "value"), [("question", "Another?"), ("answer", "no"), ("type", "x"), ("task", "y"), ("metric", "exact")]
)
def test_another_question_under_the_same_id_is_refused(tmp_path, column, value):
    rows = _rows(0.6, 2)
    rows[70] |= {column: value}
    a, b = _finished(tmp_path / "a", _rows(0.4, 1)), _finished(tmp_path / "b", rows)
    with pytest.raises(SourceError, match=rf"slake/closed/10.*{column}.*cannot be compared"):
        compare(_arm(a), _arm(b))
    with pytest.raises(SourceError, match="cannot be compared"):
        compare(_arm(a, b), _arm(a))


def test_modes_have_their_own_scores(tmp_path):
    rows = [row | {"score_paper": 1.0} for row in _rows(0.4, 1)]
    a, b = _finished(tmp_path / "a", _rows(0.4, 1)), _finished(tmp_path / "b", rows)
    assert compare(_arm(a), _arm(b), "strict", samples=200).overall.difference.value == 0
    assert compare(_arm(a), _arm(b), "paper", samples=200).overall.b.value == 1


def test_what_cannot_be_compared_says_why(tmp_path, two):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no finished evaluation"):
        compare(_arm(two[0]), _arm(str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match=r"no answers of a model 'base'; it has: adapted"):
        compare(_arm(two[0], model="base"), _arm(two[1]))
    old = [{"question_id": "q", "model": "adapted", "type": "a", "score": 1}]
    with pytest.raises(SourceError, match=r"has no task, kind.*--force-new"):
        compare(_arm(two[0]), _arm(_finished(tmp_path / "old", old)))
    other = _rows(0.5, 1, groups={("clrs", "closed"): 4})
    with pytest.raises(SourceError, match="of 0 questions that every run was asked"):
        compare(_arm(two[0]), _arm(_finished(tmp_path / "other", other)))
    with pytest.raises(RowAccountingError, match="1 questions twice for one model: q"):
        compare(_arm(two[0]), _arm(_finished(tmp_path / "twice", [_row("q", "adapted", "t", "open", 1.0)] * 2)))
    next(Path(two[1], "evaluate", "data").glob("*")).unlink()
    with pytest.raises(StorageError, match="is missing"):
        compare(_arm(two[0]), _arm(two[1]))


def test_both_models_of_one_run_on_the_command_line(tmp_path, monkeypatch):
    run = _finished(tmp_path / "run", _rows(0.3, 1, "base") + _rows(0.7, 2, "adapted"))
    monkeypatch.setenv("COLUMNS", "140")
    shown = _adamllm("compare", run, run, "--model", "base,adapted")
    assert shown.returncode == 0, shown.stderr
    assert f"A: the base model of {run}" in shown.stdout
    assert "mean over types" in shown.stdout
    assert shown.stdout.rstrip().splitlines()[-1].startswith("B is better than A by")
    told = json.loads(_adamllm("compare", run, run, "--model", "base,adapted", "--json", "--metrics", "paper").stdout)
    assert told["metrics"] == "paper"
    assert told["average"]["difference"]["p"] < 0.001
    assert {line["task"] for line in told["lines"]} == {"slake", "recipe1m"}


def test_usage_errors(two):
    for arguments, words in (
        (["--model", "a,b,c"], "give one name, or two"),
        (["--metrics", "lenient"], "choose 'strict' or 'paper'"),
        (["--model", "base"], "Set --model"),
    ):
        shown = _adamllm("compare", *two, *arguments)
        assert (shown.returncode, words in shown.stderr) == (2, True)
        assert "Traceback" not in shown.stderr


def test_hostile_names_stay_text(tmp_path):
    groups = {("[red]x[/red]\x1b[2J", "open"): 5}
    a, b = (_finished(tmp_path / name, _rows(0.4, seed, groups=groups)) for name, seed in (("a", 1), ("b", 2)))
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", a, b, "--a", b])
    assert shown.exit_code == 0, shown.output
    assert "[red]x[/red]\\x1b[2J" in shown.output
    assert "2 runs pooled by question" in shown.output


def test_runs_on_s3(bucket):
    a, b = (_finished(f"s3://{bucket.name}/{name}", _rows(skill, 1)) for name, skill in (("a", 0.3), ("b", 0.8)))
    found = compare(_arm(a), _arm(b), samples=200)
    assert found.overall.n == 180
    assert found.overall.difference.value > 0.2


def _adamllm(*arguments):
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "140"}
    command = [sys.executable, "-m", "adamllm_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
