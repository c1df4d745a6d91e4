"""All twelve benchmarks in the layout of their release: what becomes the key of a row, and what becomes a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import EvaluationSection
from adamllm_ray.config.evaluation import BENCHMARKS, METRIC_NAMES
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.metrics import METRICS, score
from adamllm_ray.evaluation.tasks import benchmark, describe, load_questions, task_digest
from adamllm_ray.evaluation.tasks.layout import vocabulary
from tests.evaluation.tasks import released

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return released.write_all(tmp_path_factory.mktemp("released"))


def load(name: str, path: str | Path, **more: Any) -> list[Any]:
    section = EvaluationSection.model_validate({"tasks": [{"name": name, "path": str(path), **more}]})
    return list(load_questions(section))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_three_sound_rows_and_a_verdict(name: str, paths: dict[str, str]) -> None:
    questions = load(name, paths[name])
    task = benchmark(name)
    assert [one.verdict for one in questions] == [Verdict.OK] * released.GOOD + [Verdict.ROW_UNREADABLE]
    assert questions[-1].verdict_detail
    sound = questions[: released.GOOD]
    assert [one.image for one in sound] == [row["image"]["bytes"] for row in released.all_rows()[name][:3]]
    assert {one.type for one in sound} == {task.label(column) for column in task.rows}
    assert [int(one.id.rpartition("-")[2]) for one in sound] == [0, 1, 2]  # seeds what the paper draws
    assert all(one.id.startswith(f"{name}/") and one.task == name for one in questions)
    assert {one.max_new_tokens for one in sound} == {task.max_new_tokens}


def test_names_in_the_configuration_are_the_files_and_metrics_here() -> None:
    assert list(METRICS) == list(METRIC_NAMES)
    assert [benchmark(name).name for name in BENCHMARKS] == list(BENCHMARKS)
    rows = [count for name in BENCHMARKS for count in benchmark(name).rows.values()]
    assert len(rows) == 15  # columns of the paper's tables: biomedicine has seven
    assert all(benchmark(name).link.startswith("http") and benchmark(name).licence for name in BENCHMARKS)


def test_open_and_closed(paths: dict[str, str]) -> None:
    closed, open_, _, _ = load("slake", paths["slake"])
    assert (closed.metric, closed.kind, closed.type, closed.answer) == ("yes_no", "closed", "SLAKE closed", "No")
    assert (open_.metric, open_.kind, open_.type, open_.answer) == ("recall", "open", "SLAKE open", "the left lung")


def test_choices_of_pmc_vqa(paths: dict[str, str]) -> None:
    found = load("pmc_vqa", paths["pmc_vqa"])
    assert [one.answer for one in found[:3]] == ["A", "C", "B"]
    assert found[0].choices == ("a circle", "two circles", "a square", "nothing")
    assert {one.metric for one in found[:3]} == {"choice"}
    assert "neither a letter" in found[3].verdict_detail


def test_numbers_stand_for_names(paths: dict[str, str]) -> None:
    dishes = load("food101", paths["food101"])
    assert [one.answer for one in dishes[:3]] == ["apple_pie", "baklava", "baby_back_ribs"]
    assert dishes[0].choices == tuple(released.DISHES)
    foods = load("foodseg103", paths["foodseg103"])
    assert [json.loads(one.answer) for one in foods[:3]] == [["candy", "rice"], ["egg tart"], []]
    assert foods[0].choices == ("candy", "egg tart", "rice")
    assert (dishes[0].metric, foods[0].metric) == ("numbered_choice", "names_f1")


def test_ingredients_with_commas(paths: dict[str, str]) -> None:
    found = load("nutrition5k", paths["nutrition5k"])
    assert [json.loads(one.answer) for one in found[:3]] == [["rice", "olive oil"], ["brown rice"], ["salt, iodized"]]
    assert found[0].choices == tuple(released.INGREDIENTS)


def test_without_the_release_s_table_labels_make_the_vocabulary(tmp_path: Path) -> None:
    rows = released.all_rows()
    found = load("nutrition5k", released.write_parquet(tmp_path / "a", rows["nutrition5k"]))
    assert found[0].choices == ("brown rice", "olive oil", "rice", "salt, iodized")
    spelt = [row | {"label": json.dumps(row["label"])} for row in rows["nutrition5k"][:3]]
    assert load("nutrition5k", released.write_parquet(tmp_path / "b", spelt))[0].choices == found[0].choices
    numbers = released.write_parquet(tmp_path / "c", rows["food101"])
    with pytest.raises(
        SourceError, match=r"evaluation\.tasks\.0: the labels .* are numbers, and food101_name_to_label"
    ):
        load("food101", numbers)
    assert load("clrs", released.write_parquet(tmp_path / "d", rows["clrs"]))[0].choices == (
        "airport",
        "bare-land",
        "beach",
    )


def test_labels_are_looked_up_but_for_case_and_hyphens_and_strange_ones_are_verdicts(tmp_path: Path) -> None:
    """An answer outside the vocabulary cannot be found in a prediction: it would be scored wrong, or not at all."""
    rows = released.plain(0, ["Apple_Pie", "baby back-ribs", "baklawa"], broken="")
    folder = released.write_parquet(tmp_path / "food101", rows)
    (folder / "food101_name_to_label_map.json").write_text('{"apple pie": 0, "baby back ribs": 1, "baklava": 2}')
    found = load("food101", folder)
    assert [one.answer for one in found[:2]] == ["apple pie", "baby back ribs"]
    assert all(score(one.answer, one, mode).value == 1 for one in found[:2] for mode in ("strict", "paper"))
    assert found[2].verdict == Verdict.ROW_UNREADABLE
    assert "'baklawa' is none of the 3 names" in found[2].verdict_detail
    rows = released.plain(0, [["eggs (boiled)"], ["egg", "zzz"], ["Salt,_iodized"]], broken=["egg"])
    folder = released.write_parquet(tmp_path / "nutrition5k", rows)
    (folder / "nutrition5k_ingredients.py").write_text("x = ['egg', 'salt, iodized']")
    found = load("nutrition5k", folder)
    assert [one.verdict for one in found] == [Verdict.ROW_UNREADABLE] * 2 + [Verdict.OK] * 2
    assert json.loads(found[2].answer) == ["salt, iodized"]
    spelt = [row | {"label": "salt, iodized"} for row in rows[:1]]
    assert json.loads(load("nutrition5k", write_beside(folder, spelt))[0].answer) == ["salt, iodized"]


def write_beside(folder: Path, rows: released.Rows) -> Path:
    return released.write_parquet(folder, rows) / "test-00000-of-00001.parquet"


def test_a_letter_is_the_label_although_a_choice_reads_so(tmp_path: Path) -> None:
    texts = {"A": "B", "B": "A", "C": "C", "D": "none"}
    rows = [released.row(i, "Which?", label, **texts) for i, label in enumerate(("A", "b", "None", "e"))]
    found = load("pmc_vqa", released.write_parquet(tmp_path, rows))
    assert [one.answer for one in found[:3]] == ["A", "B", "D"]
    assert found[3].verdict == Verdict.ROW_UNREADABLE


def test_the_table_of_names_and_the_split_are_part_of_what_is_asked(tmp_path: Path) -> None:
    folder = released.write_parquet(tmp_path / "food101", released.plain(0, ["pizza"], broken="pie"))
    section = EvaluationSection.model_validate({"tasks": [{"name": "food101", "path": str(folder)}]})
    before = task_digest(section.asked[0])
    (folder / "food101_name_to_label_map.json").write_text('{"pizza": 0, "pie": 1}')
    assert task_digest(section.asked[0]) != before
    own = released.write_parquet(tmp_path / "own", released.plain(0, ["a"]), "part-0.parquet")
    for name in ("test", "train"):
        released.write_parquet(tmp_path / "splits", released.plain(0, ["a"]), f"{name}-0.parquet")
    tasks = [{"name": "a", "path": str(own)}, {"name": "b", "path": str(own.parent / "splits")}]
    tasks.append({"name": "clrs", "path": str(own.parent / "splits"), "split": "train"})
    section = EvaluationSection.model_validate({"tasks": tasks})
    assert [describe(one, section)["split"] for one in section.asked] == ["all rows", "test", "train"]


@pytest.mark.parametrize("content", ["{", '{"a": 1, "b": 3}', "print(1)", "[1, 2]", '["a", 1]', "[]", "(" * 10_000])
def test_a_table_of_names_that_is_none(content: str) -> None:
    with pytest.raises(SourceError, match="here holds neither a list of names"):
        vocabulary(content, "here")


def test_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "?"}\n')
    assert [one.verdict for one in load("slake", tmp_path / "own.jsonl")] == [Verdict.ROW_UNREADABLE]
    rows = [{"image": row["image"], "question": "?"} for row in released.medical(0)]
    with pytest.raises(SourceError, match=r"evaluation\.tasks\.0: .* lacks the column\(s\) input, label"):
        load("slake", released.write_parquet(tmp_path / "table", rows))


def test_tokens_are_the_protocol_s_unless_the_configuration_says(paths: dict[str, str]) -> None:
    assert load("slake", paths["slake"], max_new_tokens=7)[0].max_new_tokens == 7
    section = EvaluationSection.model_validate(
        {"tasks": [{"name": "slake", "path": paths["slake"]}], "max_new_tokens": 9}
    )
    assert next(load_questions(section)).max_new_tokens == 9
    said = describe(section.asked[0], section)
    assert "at most 9 tokens" in said["protocol"]
    assert said["paper_rows"] == {"SLAKE open": 645, "SLAKE closed": 416}
    assert said["split"] == "test"
