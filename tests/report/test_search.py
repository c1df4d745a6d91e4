"""The section of a search in the report: best point, intervals, picture."""

from __future__ import annotations

import pytest

from adamllm_ray.config import TuningSection
from adamllm_ray.report.build import build_report
from adamllm_ray.report.search import search_rows
from adamllm_ray.tuning.runner import summary
from adamllm_ray.tuning.space import Space

RATE = "training.learning_rate"


def found(config, sources):
    """A summary of made-up trials, one of which was stopped and one failed."""
    tree = {
        "sources": sources,
        "fields": {RATE: {"low": 1e-5, "high": 1e-3, "log": True}},
        "validation": [{"name": "mine", "path": "v.jsonl"}],
    }
    searched = config.model_copy(update={"tuning": TuningSection.model_validate(tree)})
    space = Space.of(searched.tuning)
    trials = []
    for one in space.uniform(14, seed=0):
        score = 0.5 - (one.weights["task"] - 0.6) ** 2
        scored = {"score": score, "lo": score - 0.05, "hi": score + 0.05, "base": 0.2, "examples": 100}
        trials.append({"key": one.key, "verdict": "ok", "error": "", **one.to_dict(), **scored})
    trials[0] |= {"verdict": "trial_stopped"}
    trials[1] |= {"verdict": "trial_failed", "score": None, "error": "CUDA out of memory"}
    return summary(searched, space, trials, []) | {"spent": {"hours": 1.5, "unit": "GPU-hours"}}


@pytest.mark.parametrize(
    ("sources", "drawn"),
    [
        ({"caption": {}, "task": {}}, True),
        ({"caption": {}, "task": {}, "replay:<script>": {"high": 0.9}}, True),
        ({"both": {}, "caption": {}, "task": {}, "replay:x": {"high": 0.9}}, False),
    ],
)
def test_section_shows_best_and_trials(config, full_run, sources, drawn):
    stage = full_run.stage("tune")
    stage.begin({"x": 1})
    extra = found(config, sources)
    verdicts = {"ok": 12, "trial_stopped": 1, "trial_failed": 1}
    stage.finish(rows_in=14, verdicts=verdicts, extra=extra, seconds=90.0)
    build_report(config, full_run)
    page = full_run.read("report/index.html").decode()
    assert "Search over mixtures" in page
    assert "1 stopped on their way, 1 failed" in page
    assert "1.50 GPU-hours" in page
    assert ("Predicted score over mixtures" in page) is drawn
    assert "<script>" not in page.split("Search over mixtures")[1].split("</section>")[0]
    rows = search_rows(extra)
    assert rows["rows"][0]["score"] == max(row["score"] for row in rows["rows"])
    assert len(rows["rows"]) == 12
    assert {row["name"] for row in rows["dimensions"]} == {*sources, RATE}


def test_run_without_a_search_has_no_section(config, full_run):
    build_report(config, full_run)
    assert "Search over mixtures" not in full_run.read("report/index.html").decode()
