import pytest

from adamllm_ray.evaluation.baselines import majority
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.evaluation.tasks import Question


def _rows(model, scores, type_, start=0):
    return [
        {
            "question_id": f"q{start + i:03}",
            "model": model,
            "type": type_,
            "score": score,
            "parsed": True,
            "recall": None,
        }
        for i, score in enumerate(scores)
    ]


def test_cells_differences_and_averages():
    rows = _rows("base", [1, 0, 0, 0], "a") + _rows("base", [1, 1], "b", 10)
    rows += _rows("adapted", [1, 1, 1, 0], "a") + _rows("adapted", [1, 0], "b", 10)
    scores = summarise(rows[::-1], samples=200)
    assert scores["types"] == ["a", "b"]
    assert scores["models"]["base"]["overall"]["accuracy"] == 0.5
    assert scores["models"]["base"]["average"]["accuracy"] == 0.625
    assert scores["models"]["adapted"]["types"]["a"]["n"] == 4
    assert scores["difference"]["types"]["a"]["value"] == 0.5
    assert scores["difference"]["overall"]["value"] == pytest.approx(1 / 6)
    assert scores["difference"]["average"]["value"] == 0.0
    assert scores["difference"]["types"]["a"]["p"] == 0.5


def test_unusable_question_is_left_out_for_both_and_counted():
    rows = _rows("base", [None, 1], "a") + _rows("adapted", [None, 0], "a")
    scores = summarise(rows)
    assert scores["unusable"] == 1
    assert scores["models"]["base"]["types"]["a"]["n"] == 1


def test_models_asked_different_questions_are_not_compared():
    with pytest.raises(ValueError, match="same questions"):
        summarise(_rows("base", [1, 0], "a") + _rows("adapted", [1], "a"))


def test_unparsable_and_recall_are_reported():
    rows = _rows("base", [0, 1], "a") + _rows("adapted", [1, 1], "a")
    rows[0] |= {"parsed": False, "recall": 0.5}
    rows[1] |= {"recall": 1.0}
    cell = summarise(rows)["models"]["base"]["types"]["a"]
    assert (cell["unparsable"], cell["recall"]) == (1, 0.75)


def test_baselines_are_over_the_scored_questions_only():
    questions = [Question(f"q00{i}", b"", "?", answer, "a", "closed") for i, answer in enumerate(["yes", "yes", "no"])]
    rows = _rows("base", [1, 1, None], "a") + _rows("adapted", [1, 1, None], "a")
    scores = summarise(rows, [majority(questions, None)])
    assert scores["baselines"]["majority"]["overall"] == 1.0


def test_no_question_at_all():
    assert summarise([])["models"]["base"]["overall"] is None
