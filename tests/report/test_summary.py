import io

import pytest
from rich.console import Console

from adamllm_ray.report.collect import collect, duration, funnel, headline, keep_rate
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


@pytest.mark.parametrize(
    ("lo", "hi", "tone"), [(0.01, 0.2, "good"), (-0.2, -0.01, "bad"), (-0.1, 0.1, "even"), (0.0, 0.1, "even")]
)
def test_headline_follows_the_interval(lo, hi, tone):
    cell = {"n": 10, "accuracy": 0.5, "lo": 0.4, "hi": 0.6}
    gain = {"value": (lo + hi) / 2, "lo": lo, "hi": hi, "p": 0.01}
    scores = {"models": {"base": {"overall": cell}, "adapted": {"overall": cell}}, "difference": {"overall": gain}}
    scores["baselines"] = {"colour": {"overall": 0.55}}
    found, _, sentence = headline(scores)
    assert found == tone
    assert "But a linear model" in sentence


def test_no_run_no_lines():
    assert funnel_lines({}) == []
    assert headline(None)[0] == "even"


@pytest.mark.parametrize(("seconds", "words"), [(0.25, "0.2 s"), (61, "1 min 1 s"), (3600, "1 h"), (7260, "2 h 1 min")])
def test_duration(seconds, words):
    assert duration(seconds) == words
