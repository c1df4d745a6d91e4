import base64
import copy
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation.metrics import METRICS
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.report.build import build_report
from adamllm_ray.report.gallery import clip, gallery
from adamllm_ray.report.scoring import score_tables

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


def test_page_needs_no_network_and_has_no_script_but_ours(config, full_run):
    html = _build(config, full_run)
    page = _Page(html)
    assert page.tags.count("script") == 1
    script = files("adamllm_ray.report").joinpath("gallery.js").read_text("utf-8")
    assert f"<script>{script}</script>" in html
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert page.tags.count("link") == 1  # an empty icon, so that no browser asks a server for one
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value == "data:," or value.startswith(("data:image/", "#")), (tag, name, value[:80])
        assert "http:" not in value
        assert "https:" not in value
    styles = [match for value in page.attributes for match in re.findall(r"url\(([^)]*)\)", value[2])]
    assert all(style.startswith("#") for style in styles)


def test_hostile_texts_are_shown_as_text(config, full_run, hostile):
    html = _build(config, full_run)
    assert html.count("<script") == 1  # ours
    assert "<img src=http" not in html
    assert hostile in "".join(_Page(html).text)  # word for word, braces and all


def test_page_says_what_happened(config, full_run):
    text = " ".join("".join(_Page(_build(config, full_run)).text).split())
    assert "Post-training helped" in text
    assert "base model right" in text
    assert "95 % interval (Wilson for right-or-wrong answers, bootstrap-t for graded ones, 2" in text
    for heading in (
        "Scores",
        "Where the rows went",
        "Training",
        "Mixture",
        "Records",
        "Verdicts",
        "Throughput",
        "Quality",
    ):
        assert heading in text
    for words in ("loss, nats per token", "gradient norm", "replay: general", "MFU", "41.2 %", "12.3", "What trained"):
        assert words in text
    assert "judged inconsistent" in text
    assert "image missing" in text


def test_gallery_shows_drawn_best_and_worst(config, full_run):
    html = _build(config, full_run)
    assert html.count('<article class="record"') == 200
    for outcome in ("kept", "rejected", "failed"):
        assert f'class="badge {outcome}"' in html
    groups = Counter(re.findall(r'data-groups="([^"]*)"', html))
    assert sum(count for names, count in groups.items() if "best" in names) == 50
    assert sum(count for names, count in groups.items() if "worst" in names) == 50
    assert sum(count for names, count in groups.items() if "drawn" in names) >= 100


@pytest.mark.parametrize("count", [1, 7, 24, 239, 240, 5000])
def test_gallery_holds_as_many_as_asked_for(full_run, count):
    cards = gallery(full_run.stage("synthesize"), 0, count, lambda id, image: None, 500)
    assert len({card.id for card in cards}) == len(cards) == min(count, 240)
    best = [card.judge[0] for card in cards if "best" in card.groups]
    others = [card.judge[0] for card in cards if card.judge and "best" not in card.groups]
    assert len(best) <= count // 4
    assert not best or not others or min(best) >= max(others)


def test_ingest_alone_has_a_gallery(config, full_run):
    full_run.fs.delete_dir(full_run.stage("synthesize").path)
    html = _build(config, full_run)
    assert html.count('<article class="record"') == 200
    assert "Quality of the data" not in html


@pytest.mark.parametrize(
    ("text", "limit", "clipped"), [("abc", 3, "abc"), ("abcd", 3, "abc …"), ("<<", 7, "< …"), ("\ud800é", 9, "?é")]
)
def test_texts_are_cut_by_what_they_take_in_the_page(text, limit, clipped):
    assert clip(text, limit) == clipped


def test_other_score_sets_ablations_and_tasks_are_shown(config, full_run, tmp_path):
    evaluate = full_run.stage("evaluate")
    scores = evaluate.manifest().extra["scores"]
    other = RunFolder(str(tmp_path / "other"))
    other.stage("evaluate").begin({"x": 1})
    other.stage("evaluate").finish(rows_in=960, verdicts={"ok": 960}, extra={"scores": scores}, seconds=61)
    tasks = {
        "water": {"protocol": "bare question", "split": "test <b>", "n": 480, "unusable": 3, "paper_rows": {"x": 1}}
    }
    more = scores | {"paper": scores, "general": scores, "tasks": tasks}
    evaluate.finish(rows_in=960, verdicts={"ok": 960}, extra={"scores": more}, seconds=61)
    settings = config.model_dump(mode="json")
    settings["report"] = {"ablations": {"caption only": str(tmp_path / "other")}, "price_per_hour": 36.0}
    html = _build(parse_config(settings), full_run)
    text = " ".join("".join(_Page(html).text).split())
    for words in ("under the published metrics", "what was forgotten", "What was asked", "bare question", "test <b>"):
        assert words in text
    assert html.count('<th class="number">caption only</th>') == 2  # that run has no general scores
    assert "Throughput and cost" in text
    assert "3.00" in text  # 300 s at 36 an hour
    settings["report"] = {"ablations": {"none": str(tmp_path / "nothing")}}
    with pytest.raises(ConfigError, match=r"report\.ablations\.none"):
        _build(parse_config(settings), full_run)


def test_protocol_split_denominator_and_metrics_are_in_the_page(config, full_run):
    about = {"title": "SLAKE", "protocol": "zero-shot, at most 9 tokens", "split": "test", "general": False}
    about["paper_rows"] = {"SLAKE open": 645, "SLAKE closed": 416}
    rows = [
        {"question_id": f"slake/{i}", "model": model, "task": "slake", "type": "SLAKE open", "metric": "recall"}
        | {"verdict": verdict, "score_strict": value, "parsed_strict": True, "score_paper": value, "parsed_paper": True}
        for model in ("base", "adapted")
        for i, (value, verdict) in enumerate([(0.5, "ok"), (1.0, "ok"), (None, "row_unreadable")])
    ]
    scores = summarise(rows, tasks={"slake": about}, samples=50)
    full_run.stage("evaluate").finish(
        rows_in=6, verdicts={"ok": 4, "row_unreadable": 2}, extra={"scores": scores}, seconds=1
    )
    text = " ".join("".join(_Page(_build(config, full_run)).text).split())
    assert "base model's score" in text
    for words in (
        "at most 9 tokens",
        "why unusable",
        "1 malformed",
        "SLAKE open 645, SLAKE closed 416",
        "rows in the paper",
    ):
        assert words in text
    assert "slake: n = 2 of 3 rows, 1 malformed." in text
    for mode in ("strict", "paper"):
        assert METRICS["recall"].protocol[mode] in text


def test_the_adapted_model_is_the_one_that_was_scored(config, full_run):
    assert ("adapted", "train/model") in _rows_of(_build(config, full_run))
    settings = config.model_dump(mode="json")
    settings["models"]["adapted"] = "/models/other-adapter"
    evaluate = full_run.stage("evaluate")
    full_run.fs.delete_dir(evaluate.path)
    assert ("adapted", "/models/other-adapter") in _rows_of(_build(parse_config(settings), full_run))
    evaluate.begin({"x": 1})
    models = {"base": "pocket:base", "adapted": "/models/scored"}
    evaluate.finish(rows_in=1, verdicts={"ok": 1}, extra={"models": models}, seconds=1)
    assert ("adapted", "/models/scored") in _rows_of(_build(parse_config(settings), full_run))


def _rows_of(html):
    return re.findall(r"<tr><td>([^<]*)</td><td><code>([^<]*)</code></td></tr>", html)


def _digested(scores, digest):
    """The scores with the digest of the questions in each cell; None as an earlier version wrote them."""
    found = copy.deepcopy(scores)
    for model in found["models"].values():
        for cell in (*model["types"].values(), model["overall"], model["average"]):
            cell.pop("questions_digest", None)
            if digest is not None:
                cell["questions_digest"] = digest
    return found


def test_columns_of_other_runs_are_about_the_same_questions(config, full_run):
    scores = full_run.stage("evaluate").manifest().extra["scores"]
    mine, fewer = _digested(scores, "a"), _digested(scores, "a")
    fewer["models"]["adapted"]["types"]["island"]["n"] -= 1
    others = {"same": mine, "others": _digested(scores, "b"), "old": _digested(scores, None), "fewer": fewer}
    table = score_tables(mine, others)[0]
    shown = [[cell is not None for cell in row.cells] for row in table.rows]
    island = [row.label for row in table.rows].index("island")
    assert shown[0] == [True, True, True, False, True, True]
    assert shown[island] == [True, True, True, False, True, False]
    assert table.models == ["base", "adapted", "same", "others", "old", "fewer"]
    assert table.remarks == [
        "others was asked other questions in 8 of 8 rows: no figure there.",
        "Whether old was asked the same questions cannot be told: an earlier version evaluated it or this run.",
        "fewer was asked other questions in 1 of 8 rows: no figure there.",
    ]
    assert [len(score_tables(_digested(scores, None), {"x": one})[0].remarks) for one in (mine, others["old"])] == [
        1,
        1,
    ]


def test_presigned_thumbnails_need_s3(config, full_run):
    settings = config.model_dump(mode="json") | {"report": {"thumbnails": "presigned"}}
    with pytest.raises(ConfigError, match=r"report\.thumbnails"):
        _build(parse_config(settings), full_run)


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
