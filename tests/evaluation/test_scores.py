import pytest

from adamllm_ray.evaluation.baselines import majority
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.evaluation.tasks import Question


def _rows(model, scores, type_, start=0, task="own", paper=None):
    return [
        {
            "question_id": f"q{start + i:03}",
            "model": model,
            "task": task,
            "type": type_,
            "metric": "recall",
            "verdict": "ok" if score is not None else "row_unreadable",
            "score_strict": score,
            "parsed_strict": True,
            "score_paper": score if paper is None else paper[i],
            "parsed_paper": True,
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


def test_cells_say_which_questions_they_are_about():
    def cells(scores, start, *, turned=False):
        rows = _rows("base", scores, "a", start) + _rows("adapted", scores, "a", start)
        rows += _rows("base", [1], "b", 50) + _rows("adapted", [1], "b", 50)
        return summarise(rows[::-1] if turned else rows, samples=50)

    def digest(scores, column="a", model="base"):
        part = scores["models"][model]
        return (part["types"][column] if column in part["types"] else part[column])["questions_digest"]

    one, others, fewer = cells([1, 0, 0], 0), cells([1, 0, 0], 1), cells([1, 0, None], 0)
    assert digest(one) == digest(cells([0, 0, 1], 0, turned=True)) == digest(one, model="adapted")
    assert digest(one) == digest(one["paper"])
    assert len({digest(one), digest(others), digest(fewer), digest(one, "b"), digest(one, "overall")}) == 5
    assert digest(one, "b") == digest(others, "b")
    assert digest(one, "average") == digest(one, "overall")


def test_unparsable_is_counted_per_mode():
    rows = _rows("base", [0, 1], "a") + _rows("adapted", [1, 1], "a")
    rows[0] |= {"parsed_strict": False}
    scores = summarise(rows)
    assert scores["models"]["base"]["types"]["a"]["unparsable"] == 1
    assert scores["paper"]["models"]["base"]["types"]["a"]["unparsable"] == 0


def test_both_modes_have_the_same_layout_and_graded_scores_are_compared_too():
    rows = _rows("base", [0, 1], "a", paper=[0.5, 1]) + _rows("adapted", [1, 1], "a", paper=[0.75, 1])
    scores = summarise(rows)
    assert scores["paper"].keys() == {"types", "models", "difference", "baselines", "unusable", "bootstrap_samples"}
    assert scores["difference"]["types"]["a"]["p"] == 1.0
    gain = scores["paper"]["difference"]["types"]["a"]
    assert gain["value"] == pytest.approx(0.125)
    assert gain["lo"] <= 0.125 <= gain["hi"]
    assert 0 < gain["p"] <= 1


def test_seven_columns_of_unequal_size_weigh_the_same():
    """The paper's biomedicine: open and closed of three sets, and PMC-VQA."""
    columns = ["SLAKE open", "SLAKE closed", "PathVQA open", "PathVQA closed", "VQA-RAD open", "VQA-RAD closed", "PMC"]
    rows = []
    for i, column in enumerate(columns):
        for model in ("base", "adapted"):
            rows += _rows(model, [i % 2] * (10 + 40 * i), column, 1000 * i)
    scores = summarise(rows, samples=50)
    assert scores["models"]["base"]["average"]["accuracy"] == pytest.approx(3 / 7)
    assert scores["models"]["base"]["overall"]["accuracy"] == pytest.approx((50 + 130 + 210) / 910)


def test_general_questions_are_apart_and_tasks_have_their_denominators():
    rows = []
    for model, right in (("base", [1, 1, None]), ("adapted", [0, 1, None])):
        rows += _rows(model, [0, 1], "a") + _rows(model, right, "everyday: b", 10, task="everyday")
    about = {"own": {"title": "own", "general": False}, "everyday": {"title": "everyday", "general": True}}
    scores = summarise(rows, tasks=about)
    assert scores["types"] == ["a"]
    assert scores["unusable"] == 0
    assert scores["general"]["types"] == scores["general"]["paper"]["types"] == ["everyday: b"]
    assert scores["general"]["unusable"] == 1
    assert scores["general"]["difference"]["overall"]["value"] == -0.5
    assert scores["models"]["adapted"]["overall"]["n"] == 2
    task = scores["tasks"]["everyday"]
    assert (task["rows"], task["n"], task["unusable"]) == (3, 2, 1)
    assert task["verdicts"] == {"row_unreadable": 1}
    assert task["models"]["adapted"]["strict"]["accuracy"] == 0.5
    assert task["types"].keys() == {"everyday: b"}


def test_baselines_are_over_the_scored_questions_only():
    questions = [Question(f"q00{i}", b"", "?", answer, "a", "closed") for i, answer in enumerate(["yes", "yes", "no"])]
    rows = _rows("base", [1, 1, None], "a") + _rows("adapted", [1, 1, None], "a")
    scores = summarise(rows, [majority(questions, None)])
    assert scores["baselines"]["majority"]["overall"] == 1.0


def test_no_question_at_all():
    assert summarise([])["models"]["base"]["overall"] is None
