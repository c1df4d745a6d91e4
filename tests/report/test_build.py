import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adamllm_ray.report.build import build_report

pytestmark = pytest.mark.timeout(60)


class _Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def _build(config, run):
    return Path(build_report(config, run)).read_text("utf-8")


def test_page_needs_no_network_and_no_script(config, full_run):
    page = _Page(_build(config, full_run))
    assert "script" not in page.tags
    assert not {"link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:80])
        assert "http:" not in value
        assert "https:" not in value
    styles = [match for value in page.attributes for match in re.findall(r"url\(([^)]*)\)", value[2])]
    assert all(style.startswith("#") for style in styles)


def test_hostile_texts_are_shown_as_text(config, full_run, hostile):
    html = _build(config, full_run)
    assert "<script" not in html
    assert "<img src=http" not in html
    assert hostile in "".join(_Page(html).text)  # word for word, braces and all


def test_page_says_what_happened(config, full_run):
    text = " ".join("".join(_Page(_build(config, full_run)).text).split())
    assert "Post-training helped" in text
    assert "base model right" in text
    for heading in ("Scores", "Where the rows went", "Training", "Mixture", "Records", "Verdicts", "Stages"):
        assert heading in text
    for words in ("loss, nats per token", "gradient norm", "replay: general", "MFU", "41.2 %", "12.3", "What trained"):
        assert words in text
    assert "judged inconsistent" in text
    assert "image missing" in text


def test_gallery_shows_kept_rejected_and_failed(config, full_run):
    html = _build(config, full_run)
    assert html.count('<article class="record">') == 24
    for outcome in ("kept", "rejected", "failed"):
        assert f'class="badge {outcome}"' in html


def test_gallery_is_the_same_every_time(config, full_run):
    assert _build(config, full_run) == _build(config, full_run)


def test_report_of_an_empty_run(config, empty_run):
    html = _build(config, empty_run)
    assert "Not evaluated yet" in html


def test_report_of_a_run_that_was_not_evaluated(config, full_run):
    full_run.fs.delete_dir(full_run.stage("evaluate").path)
    full_run.fs.delete_dir(full_run.stage("train").path)
    html = _build(config, full_run)
    assert "Not evaluated yet" in html
    assert "Where the rows went" in html
    assert "<h2>Training</h2>" not in html


def test_report_of_a_training_before_speeds_and_kinds_were_kept(config, full_run):
    train = full_run.stage("train")
    extra = train.manifest().extra
    del extra["speed"]
    extra["losses"] = [{key: entry[key] for key in ("step", "loss", "lr")} for entry in extra["losses"]]
    train.finish(rows_in=240, verdicts={"ok": 230, "image_missing": 10}, extra=extra, seconds=140)
    html = _build(config, full_run)
    assert "learning rate" in html
    assert "gradient norm" not in html
    assert "tokens/s" not in html


def test_a_long_run_makes_no_long_page(config, full_run):
    from adamllm_ray.report.plots import loss_curve

    losses = full_run.stage("train").manifest().extra["losses"]
    long = [entry | {"step": step} for step, entry in enumerate(losses * 100)]
    assert len(loss_curve(long)) < 150_000


@pytest.mark.parametrize("missing", ["majority", "colour"])
def test_report_without_a_baseline_that_could_not_be_fitted(config, full_run, missing):
    # A task of a user's own with open answers has no colour baseline.
    evaluate = full_run.stage("evaluate")
    scores = evaluate.manifest().extra["scores"]
    del scores["baselines"][missing]
    full_run.fs.delete_dir(evaluate.path)
    evaluate.begin({"x": 1})
    evaluate.finish(rows_in=960, verdicts={"ok": 960}, extra={"scores": scores}, seconds=61)
    html = _build(config, full_run)
    words = {"majority": "most common answer", "colour": "linear model on mean colour"}
    for name, text in words.items():
        assert (text in html) == (name != missing)
