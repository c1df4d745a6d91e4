import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import EvaluationSection
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.tasks import QUESTION_SCHEMA, load_questions


def _load(path, **more):
    return list(load_questions(EvaluationSection(task=str(path), **more)))


def _jsonl(folder, *rows):
    (folder / "a.png").write_bytes(b"image bytes")
    file = folder / "task.jsonl"
    file.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return file


GOOD = {"id": "q", "image": "a.png", "question": "Island?", "answer": "Yes", "type": "island"}


def test_jsonl_row(tmp_path):
    (question,) = _load(_jsonl(tmp_path, GOOD))
    assert (question.id.removeprefix("own/"), question.image, question.kind, question.verdict) == (
        "q",
        b"image bytes",
        "closed",
        Verdict.OK,
    )
    assert pa.Table.from_pylist([question.row()], schema=QUESTION_SCHEMA).num_rows == 1


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (b"{not json", Verdict.ROW_UNREADABLE),
        (b"[1, 2]", Verdict.ROW_UNREADABLE),
        (b"[" * 100_000, Verdict.ROW_UNREADABLE),
        ({"image": "a.png", "question": "?"}, Verdict.ROW_UNREADABLE),
        (GOOD | {"question": " "}, Verdict.ROW_UNREADABLE),
        (GOOD | {"kind": "maybe"}, Verdict.ROW_UNREADABLE),
        (GOOD | {"choices": "Yes"}, Verdict.ROW_UNREADABLE),
        (GOOD | {"choices": ["a", "b"]}, Verdict.ROW_UNREADABLE),
        (GOOD | {"metric": "vibes"}, Verdict.ROW_UNREADABLE),
        (GOOD | {"metric": "choice"}, Verdict.ROW_UNREADABLE),
        (GOOD | {"metric": "choice", "answer": "C", "choices": ["a", "b"]}, Verdict.ROW_UNREADABLE),
        (GOOD | {"metric": "numbered_choice", "answer": "2", "choices": ["a", "b"]}, Verdict.ROW_UNREADABLE),
        (GOOD | {"metric": "names_recall", "answer": "egg, zzz", "choices": ["egg", "salt"]}, Verdict.ROW_UNREADABLE),
        (GOOD | {"image": "nowhere.png"}, Verdict.IMAGE_MISSING),
        (GOOD | {"image": None}, Verdict.IMAGE_MISSING),
        (GOOD | {"image": "../a.png"}, Verdict.IMAGE_MISSING),
        (GOOD | {"image": "/etc/hostname"}, Verdict.IMAGE_MISSING),
        (GOOD | {"image": "file:///etc/hostname"}, Verdict.IMAGE_MISSING),
        (GOOD | {"image": "a\u0000b"}, Verdict.IMAGE_MISSING),
    ],
)
def test_bad_row_is_a_verdict_and_the_next_row_is_read(tmp_path, row, verdict):
    bad, good = _load(_jsonl(tmp_path, row, GOOD | {"id": "next"}))
    assert (bad.verdict, good.verdict) == (verdict, Verdict.OK)
    assert bad.verdict_detail


def test_parquet_with_bytes_struct_and_choices(tmp_path):
    file = tmp_path / "task.parquet"
    rows = [
        GOOD | {"image": {"bytes": b"x", "path": None}, "answer": "left", "choices": ["left", "right"], "meta": "{}"}
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    (question,) = _load(file)
    assert (question.image, question.choices, question.kind) == (b"x", ("left", "right"), "open")


def test_a_row_says_how_it_is_scored_or_the_configuration_does(tmp_path):
    rows = [
        GOOD | {"id": "usual"},
        GOOD | {"id": "own", "metric": "exact"},
        GOOD | {"id": "letter", "metric": "choice", "answer": "B", "choices": ["x", "y"]},
        GOOD | {"id": "bare letter", "metric": "choice", "answer": "D"},
        GOOD | {"id": "number", "metric": "numbered_choice", "answer": "1", "choices": ["x", "y"]},
        GOOD | {"id": "names", "metric": "names_f1", "answer": ["rice, brown", "egg"]},
        GOOD | {"id": "spelt", "metric": "names_recall", "answer": "rice, egg"},
    ]
    path = _jsonl(tmp_path, *rows)
    section = EvaluationSection.model_validate({"tasks": [{"name": "ours", "path": str(path), "metric": "recall"}]})
    found = {one.id.removeprefix("ours/"): one for one in load_questions(section)}
    assert {one.verdict for one in found.values()} == {Verdict.OK}
    assert found["usual"].metric == "recall"
    assert found["own"].metric == "exact"
    assert found["letter"].choices == ("x", "y")
    assert json.loads(found["names"].answer) == ["rice, brown", "egg"]
    assert json.loads(found["spelt"].answer) == ["rice", "egg"]


def test_several_tables_have_columns_and_ids_of_their_own(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [_jsonl(tmp_path, GOOD), _jsonl(tmp_path / "other", GOOD, GOOD | {"id": "r"})]
    tasks = [{"name": f"table {i}", "path": str(path)} for i, path in enumerate(paths)]
    section = EvaluationSection.model_validate({"tasks": tasks[:1], "general": [tasks[1] | {"limit": 1}]})
    first, second = load_questions(section)
    assert (first.id, first.type, first.task) == ("table 0/q", "island", "table 0")  # the only one of the domain
    assert (second.id[:8], second.type) == ("table 1/", "table 1: island")


def test_duplicate_ids_are_marked(tmp_path):
    first, second = _load(_jsonl(tmp_path, GOOD, GOOD))
    assert (first.verdict, second.verdict) == (Verdict.OK, Verdict.DUPLICATE)
    assert first.id != second.id


def test_limit_takes_the_same_questions_wherever_they_stand(tmp_path):
    rows = [GOOD | {"id": str(i)} for i in range(50)]
    one = {q.id for q in _load(_jsonl(tmp_path, *rows), limit=7)}
    assert one == {q.id for q in _load(_jsonl(tmp_path, *rows[::-1]), limit=7)}
    assert len(one) == 7


def test_ids_without_an_id_column_are_content_and_unique(tmp_path):
    row = {key: GOOD[key] for key in ("image", "question", "answer", "type")}
    first, second = _load(_jsonl(tmp_path, row, row))
    assert first.id != second.id
    assert first.verdict == second.verdict == Verdict.OK


@pytest.mark.parametrize("name", ["missing.parquet", "missing.jsonl", "notes.txt"])
def test_unreadable_file_is_a_source_error(tmp_path, name):
    with pytest.raises(SourceError, match=name):
        _load(tmp_path / name)


def test_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "question": ["?"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="answer"):
        _load(tmp_path / "t.parquet")
