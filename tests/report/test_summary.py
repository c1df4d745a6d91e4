import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from adamllm_ray.data.run import RunFolder
from adamllm_ray.evaluation.compare import Arm, compare
from adamllm_ray.evaluation.intervals import Difference, verdict
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.report.build import environment
from adamllm_ray.report.collect import collect, duration, funnel, headline, keep_rate
from adamllm_ray.report.plots import score_bars
from adamllm_ray.report.summary import funnel_lines, score_table


def test_score_table_fits_into_80_characters(config, full_run):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(score_table(collect(config, full_run).values("evaluate")))
    text = console.export_text()
    assert "…" not in text
    for words in ("water side", "all questions", "mean over types", "majority", "colour", "difference", "+25.2"):
        assert words in text


def test_funnel_and_accounting(config, full_run):
    manifests = collect(config, full_run).manifests
    steps = funnel(manifests)
    rows = [step.rows for step in steps]
    assert rows[:-1] == sorted(rows[:-1], reverse=True)
    assert (rows[0], rows[-1]) == (240, 230)
    lines = funnel_lines(manifests)
    assert any("synthesize: 240 rows in =" in line for line in lines)
    assert f"{100 * keep_rate(manifests):.1f} %" in "\n".join(lines)


def _answers(base, adapted, kind, metric="auto"):
    """Prediction rows of both models for one column."""
    return [
        {"question_id": f"ours/{kind}/{i}", "model": model, "task": "ours", "type": kind, "metric": metric}
        | {"verdict": "ok", "score_strict": float(value), "parsed_strict": True}
        | {"score_paper": float(value), "parsed_paper": True}
        for model, values in (("base", base), ("adapted", adapted))
        for i, value in enumerate(values)
    ]


def _scores(*rows):
    about = {"title": "ours", "general": False, "split": "test", "protocol": "zero-shot"}
    return summarise([row for group in rows for row in group], tasks={"ours": about}, samples=400)


TONES = {"No difference can be told": "even", "adapted is better": "good", "base is better": "bad"}


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("won", [0, 2, 4, 5, 6, 9, 15])
def test_headline_and_colours_go_by_p_as_compare_does(won, lost):
    """At 5 to 0 of 20 the interval is above zero and the exact p is 0.062: compare tells no difference."""
    scores = _scores(_answers([0] * won + [1] * (20 - won), [1] * (20 - lost) + [0] * lost, "t"))
    gain = scores["difference"]["average"]
    said = verdict(Difference(**gain, test="exact McNemar"), 20, "base", "adapted")
    [tone] = [tone for words, tone in TONES.items() if said.startswith(words)]
    assert headline(scores)[0] == tone
    if (won, lost) == (5, 0):
        assert (tone, gain["lo"] > 0, gain["p"] < 0.07) == ("even", True, True)
    shown = score_table({"scores": scores}).columns[4]
    colours = {cell.style for cell in shown.cells if str(cell)}
    assert colours == {{"even": "", "good": "green", "bad": "red"}[tone]}
    macro = environment().get_template("scores.html.j2").make_module({"tables": [], "tasks": ((), ())}).gain
    assert f'class="{tone}"' in macro(gain)


def test_headline_is_about_the_mean_over_types_as_compare_is(tmp_path):
    many = _answers([0] * 900 + [1] * 100, [1] * 100 + [0] * 800 + [1] * 100, "many")
    few = _answers([1] * 40, [0] * 30 + [1] * 10, "few")
    scores = _scores(many, few)
    assert scores["difference"]["overall"]["value"] > 0.06
    tone, words, sentence = headline(scores)
    assert (tone, words) == ("bad", "Post-training hurt")
    assert "On the same 1040 questions, in the mean over 2 question types, the adapted model answers" in sentence
    assert "\N{MINUS SIGN}32.5 points" in sentence
    run = RunFolder(str(tmp_path / "run")).stage("evaluate")
    run.begin({"x": 1})
    run.fs.create_dir(run.data, recursive=True)
    rows = [row | {"kind": "open", "question": "?", "answer": "x"} for row in many + few]
    pq.write_table(pa.Table.from_pylist(rows), f"{run.data}/predictions.parquet", filesystem=run.fs)
    run.finish(rows_in=len(rows), verdicts={"ok": len(rows)}, extra={"scores": scores}, seconds=1)
    sides = [Arm((str(tmp_path / "run"),), model) for model in ("base", "adapted")]
    assert compare(*sides, samples=400).verdict.startswith("A is better than B by 32.5 points")


def test_what_was_forgotten_is_a_row_of_the_first_table():
    rows = _answers([0, 1] * 30, [1, 1] * 30, "t")
    rows += [
        row | {"task": "everyday", "question_id": f"x{row['question_id']}"} for row in _answers([1] * 20, [0] * 20, "g")
    ]
    tasks = {name: {"title": name, "general": name == "everyday"} for name in ("ours", "everyday")}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(score_table({"scores": summarise(rows, tasks=tasks, samples=50)}))
    [line] = [line for line in console.export_text().splitlines() if line.strip().startswith("general, mean")]
    assert line.split()[2:8] == ["20", "100.0", "[84,100]", "0.0", "[0,16]", "\N{MINUS SIGN}100.0"]


def test_graded_scores_are_not_called_right():
    graded = _scores(_answers([0.2, 0.4, 0.6], [0.5, 0.4, 0.7], "Recipe1M", "rouge_l"))
    assert "the adapted model scores 53.3 %, the base model 40.0 %" in headline(graded)[2]
    assert str(score_table({"scores": graded}).title).startswith("Mean score")
    assert "mean score" in score_bars(graded)
    plain = _scores(_answers([0, 0, 1], [1, 1, 1], "t", "yes_no"))
    assert "the adapted model answers 100.0 % right" in headline(plain)[2]
    assert str(score_table({"scores": plain}).title).startswith("Accuracy")


def test_a_baseline_within_the_interval_is_said():
    scores = _scores(_answers([0, 1] * 10, [0, 1] * 10, "t"))
    scores["baselines"] = {"colour": {"fitted_on": "train", "types": {"t": 0.6}, "overall": 0.6, "average": 0.6}}
    assert "But a linear model" in headline(scores)[2]


def test_no_run_no_lines():
    assert funnel_lines({}) == []
    assert headline(None)[0] == "even"


@pytest.mark.parametrize(("seconds", "words"), [(0.25, "0.2 s"), (61, "1 min 1 s"), (3600, "1 h"), (7260, "2 h 1 min")])
def test_duration(seconds, words):
    assert duration(seconds) == words
