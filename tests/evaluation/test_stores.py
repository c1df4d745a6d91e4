"""Questions and answers on disk: asked once, answered once, whatever the driver does in between."""

import pyarrow as pa
import pytest

from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import RowAccountingError
from adamllm_ray.evaluation import answers, stores
from adamllm_ray.evaluation.stores import ANSWER_SCHEMA, AnswerStore, QuestionGroup, QuestionStore
from adamllm_ray.evaluation.tasks import Question


@pytest.fixture
def stage(tmp_path):
    stage = RunFolder(str(tmp_path)).stage("evaluate")
    stage.begin({"test": 1})
    return stage


def _questions(count, verdict=Verdict.OK):
    return [Question(f"q{i:03}", b"png", "?", "yes", "side", "closed", verdict=verdict) for i in range(count)]


def _answers(*ids, verdict="ok", prediction="yes"):
    row = {"model": "base", "task": "own", "type": "side", "kind": "closed", "metric": "auto"}
    row |= {"question": "?", "answer": "yes"}
    rows = [row | {"question_id": name, "verdict": verdict, "prediction": prediction} for name in ids]
    return pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)


def test_questions_are_stored_once(stage, monkeypatch):
    monkeypatch.setattr(stores, "ROWS_PER_FILE", 40)
    store = QuestionStore(stage)
    assert store.fill(_questions(100)) == (100, 100)
    assert store.fill(None) == (100, 100)  # the source is not touched
    groups = list(store.groups())
    assert [len(one.ids) for one in groups] == [16, 16, 8, 16, 16, 8, 16, 4]
    assert [name for one in groups for name in one.ids] == [f"q{i:03}" for i in range(100)]
    chosen = store.questions({"q007", "q099"}, images=False)
    assert [(one.id, one.image) for one in chosen] == [("q007", None), ("q099", None)]
    assert store.questions({"q007"}, images=True)[0].image == b"png"
    assert [one.id for one in store.questions()] == [f"q{i:03}" for i in range(100)]


def test_a_question_comes_back_as_it_went_in(stage):
    first = Question("a", b"x", "?", "B", "t", "open", ("yes", "no"), "{}", metric="choice", task="own")
    other = Question("b", b"x", "?", "B", "t", "open", ("yes", "no"), max_new_tokens=9)
    store = QuestionStore(stage)
    store.fill([first, other])
    found = store.questions(images=True)
    assert found == [first, other]
    assert found[0].choices is found[1].choices  # a hundred names of thousands of questions are kept once


def test_store_that_was_not_filled_to_its_end_is_filled_anew(stage):
    class Killed(Exception):
        pass

    def interrupted():
        yield from _questions(stores.ROWS_PER_FILE)
        raise Killed

    with pytest.raises(Killed):
        QuestionStore(stage).fill(interrupted())
    assert QuestionStore(stage).fill(_questions(3, Verdict.ROW_UNREADABLE)) == (3, 0)
    assert sum(len(one.ids) for one in QuestionStore(stage).groups()) == 3


def test_answers_survive_the_driver(stage):
    first = AnswerStore(stage, "base")
    first.add(_answers("b", "a"))
    first.flush()
    first.add(_answers("c"))  # never flushed: the driver is gone
    second = AnswerStore(stage, "base")
    assert second.settled == {"a", "b"}
    second.add(_answers("c"))
    second.flush()
    assert [row["question_id"] for row in AnswerStore(stage, "base").rows()] == ["a", "b", "c"]
    assert AnswerStore(stage, "adapted").rows() == []


def test_many_answers_do_not_wait_for_a_flush(stage):
    AnswerStore(stage, "base").add(_answers(*(f"q{i}" for i in range(stores.FLUSH_ROWS))))
    assert len(AnswerStore(stage, "base").settled) == stores.FLUSH_ROWS


def test_few_answers_do_not_wait_for_long(stage, monkeypatch):
    """A driver that dies has then lost what came since the last write, however slowly answers come."""
    store = AnswerStore(stage, "base")
    store.add(_answers("a"))
    assert AnswerStore(stage, "base").settled == set()
    monkeypatch.setattr(stores, "FLUSH_S", 0.0)
    store.add(_answers("b"))
    assert AnswerStore(stage, "base").settled == {"a", "b"}


def test_what_the_engine_refused_is_asked_again_and_the_later_answer_counts(stage):
    first = AnswerStore(stage, "base")
    first.add(_answers("a", "b", verdict="engine_error", prediction=""))
    assert first.settled == {"a", "b"}  # of this start: nobody is asked twice
    first.flush()
    second = AnswerStore(stage, "base")
    assert second.settled == set()
    assert len(second.rows()) == 2
    second.add(_answers("a"))
    second.flush()
    assert [row["prediction"] for row in AnswerStore(stage, "base").rows()] == ["yes", ""]


def test_question_answered_twice_is_an_error(stage):
    store = AnswerStore(stage, "base")
    store.add(_answers("a"))
    with pytest.raises(RowAccountingError, match="'a' was answered twice"):
        store.add(_answers("a"))


def test_only_what_is_not_settled_is_work():
    groups = [QuestionGroup("f", 0, ("a", "b")), QuestionGroup("f", 1, ("c",))]
    [left] = answers._work(groups, {"a", "c"})
    assert left.to_pylist() == [{"file": "f", "group": 0, "skip": ["a"]}]
    assert [one.num_rows for one in answers._work(groups, ())] == [1, 1]
