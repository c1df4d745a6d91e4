import random

import pytest

from adamllm_ray.quality import profile as module
from adamllm_ray.quality.profile import Profile, distinct_n, labels_by_hand
from tests.quality.conftest import finish, task

ROWS = [
    *(task(i, instruction="Is it a wave?", precise="yes") for i in range(4)),
    *(task(i, instruction=f"How many waves are in picture {i}?") for i in range(4, 8)),
    *(task(i, task_verdict="judged_inconsistent", judge_yes=0.21, precise="4") for i in range(8, 12)),
    task(12, task_verdict="judged_open", judge_yes=0.11, instruction="Describe it."),
    task(13, task_verdict="response_unparsable", instruction=None, informative=None, precise=None, judge_yes=None),
    task(14, task_verdict="not_synthesized", verdict="image_missing", instruction=None, judge_yes=None),
]


@pytest.fixture
def found():
    profile = Profile(seed=0, check=labels_by_hand([{"id": row["id"], "right": n < 6} for n, row in enumerate(ROWS)]))
    profile.add(ROWS)
    return profile.result()


def test_counts_types_and_keep_rates(found):
    assert (found["rows"], found["kept"], found["different_questions"]) == (15, 8, 5)
    assert found["verdicts"]["judged_open"] == 1
    kinds = {row["type"]: (row["judged"], row["kept"], row["keep_rate"]) for row in found["types"]}
    assert kinds == {"yes/no": (4, 4, 1.0), "how many": (8, 4, 0.5), "describe": (1, 0, 0.0)}
    assert found["type_entropy"] == 1.0
    assert found["openings"] == [["how many", 4], ["is it", 4]]


def test_lengths_are_exact(found):
    assert found["lengths"]["precise"] == {"mean": 1.0, "p5": 1, "median": 1, "p95": 1, "longest": 1}
    assert found["lengths"]["instruction"]["mean"] == 5.5
    assert found["lengths"]["instruction"]["longest"] == 7


def test_keep_curve_falls_from_all_to_none(found):
    curve = dict(map(tuple, found["keep_curve"]))
    assert curve[0.0] == 1.0
    assert curve[0.5] == pytest.approx(8 / 13)
    assert curve[1.0] == 0.0
    shares = [share for _, share in found["keep_curve"]]
    assert shares == sorted(shares, reverse=True)


def test_judge_against_labels_and_rule(found):
    assert found["right"] == {"judged": {"labelled": 13, "right": 6}, "kept": {"labelled": 8, "right": 6}}
    assert found["calibration"]["n"] == 13
    assert found["agreement"] | {"agreement": 0, "kappa": 0} == {
        "n": 9, "abstained": 4, "both": 4, "judge_only": 0, "rule_only": 1, "neither": 4, "agreement": 0, "kappa": 0,
    }  # fmt: skip


def test_nothing_kept(config, run):
    finish(
        run,
        "synthesize",
        ROWS[8:],
        {"judged_inconsistent": 4, "judged_open": 1, "response_unparsable": 1, "not_synthesized": 1},
    )
    found = Profile(0).read(run.stage("synthesize")).result()
    assert (found["rows"], found["kept"], found["lengths"], found["distinct"]["texts"]) == (7, 0, {}, 0)
    assert found["right"] is None


def test_files_do_not_matter(config, run, found):
    finish(
        run,
        "synthesize",
        random.Random(0).sample(ROWS, len(ROWS)),
        {"kept": 8, "judged_inconsistent": 4, "judged_open": 1, "response_unparsable": 1, "not_synthesized": 1},
    )
    other = Profile(0).read(run.stage("synthesize")).result()
    for key in ("types", "lengths", "keep_curve", "agreement", "distinct", "openings"):
        assert other[key] == found[key]


def test_memory_stays_bounded(monkeypatch):
    """Distinct-n on a sample drawn by hash, the same in any order; rare openings are folded together."""
    monkeypatch.setattr(module, "SAMPLE", 50)
    monkeypatch.setattr(module, "MOST_OPENINGS", 100)
    rows = [task(i, image=None, instruction=f"w{i} x is it?") for i in range(1000)]
    results = []
    for order in (rows, rows[::-1]):
        profile = Profile(0)
        for start in range(0, 1000, 60):
            profile.add(order[start : start + 60])
        assert len(profile.openings) <= 160
        results.append(profile.result())
    assert results[0]["distinct"] == results[1]["distinct"]
    assert results[0]["distinct"]["texts"] == 50
    assert results[0]["kept"] == 1000
    assert results[0]["different_questions"] == 1000


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a"], 3) is None
