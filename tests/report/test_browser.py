"""The report in a real headless Chromium: it renders, filters, asks nothing of any network, and runs nobody's markup.

Chromium is Debian's (`apt-get install chromium`), any other that is installed, or Playwright's own (`playwright install
chromium`); ADAMLLM_CHROMIUM names one. Without any of them these tests are skipped.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adamllm_ray.config import parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.report.build import build_report
from tests.buckets import local_bucket
from tests.report.conftest import HOSTILE, fill_run, made_up_row

pytestmark = pytest.mark.timeout(300)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def _chromium(playwright):
    own = Path(playwright.chromium.executable_path)
    found = [os.environ.get("ADAMLLM_CHROMIUM"), *map(shutil.which, NAMES), str(own) if own.exists() else None]
    return next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = _chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: `apt-get install chromium` or `.venv/bin/playwright install chromium` brings one")
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        found = playwright.chromium.launch(executable_path=path, args=[*root, *quiet, "--disable-dev-shm-usage"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address on disk of the report of the made-up run."""
    folder = tmp_path_factory.mktemp("report") / "run"
    config = parse_config({"run": {"name": "made-up", "output": str(folder)}})
    return Path(build_report(config, fill_run(RunFolder(str(folder))))).as_uri()


class Visit:
    """A page and what it did: requests, console messages, errors, dialogs."""

    def __init__(self, browser, address, **options):
        self.requests, self.said = [], []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.goto(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def shown(self):
        """Verdict and P(Yes) of every card that can be seen, in the order of the page."""
        script = (
            "all => all.filter(one => !one.hidden).map(one => [one.dataset.verdict, one.dataset.yes, one.textContent])"
        )
        return self.page.eval_on_selector_all("article.record", script)

    def waits_for(self, said):
        """Until the line that counts the shown records says that. (The page's policy forbids `wait_for_function`.)"""
        from playwright.sync_api import expect

        expect(self.page.locator("#shown")).to_have_text(said)

    def leaving(self):
        """Requests for anything but the file itself and what it holds."""
        return [url for url in self.requests if not url.startswith(("file://", "data:"))]


def test_it_renders_and_nothing_leaves_the_page(browser, report):
    with Visit(browser, report) as visit:
        assert visit.page.inner_text("h1") == "Post-training helped"
        assert visit.page.locator("article.record").count() == 200
        for picture in visit.page.locator("article.record img").all()[:5]:
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 60
        visit.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        visit.page.wait_for_timeout(300)
        assert not visit.said
        assert not visit.leaving()
        assert sum(url.startswith("file://") for url in visit.requests) == 1


def test_hostile_texts_stay_texts(browser, report):
    with Visit(browser, report) as visit:
        assert visit.page.locator("script").count() == 1
        assert visit.page.locator("article img:not([src^='data:image/'])").count() == 0
        captions = visit.page.eval_on_selector_all("article p", "all => all.map(one => one.lastChild.textContent)")
        assert captions.count(HOSTILE) > 20
        visit.page.wait_for_timeout(200)
        assert not visit.said  # no alert, no refused request
        assert not visit.leaving()


def test_filters_search_and_order(browser, report):
    with Visit(browser, report) as visit:
        page, everything = visit.page, visit.shown()
        assert page.inner_text("#shown") == "200 of 200 records shown"
        page.select_option("#by-verdict", "judged_inconsistent")
        assert {verdict for verdict, _, _ in visit.shown()} == {"judged_inconsistent"}
        assert len(visit.shown()) == sum(verdict == "judged_inconsistent" for verdict, _, _ in everything)
        page.select_option("#by-verdict", "")
        page.select_option("#by-group", "best")
        assert len(visit.shown()) == 50
        page.select_option("#by-group", "worst")
        worst = [float(yes) for _, yes, _ in visit.shown()]
        assert max(worst) <= min(float(yes) for _, yes, _ in everything if yes and float(yes) not in worst)
        page.click("#reset")
        assert visit.shown() == everything
        page.fill("#by-text", "WATER lies left")
        visit.waits_for(re.compile("^(?!200 of).*shown$"))
        assert 0 < len(visit.shown()) < 200
        assert all("water lies on the left" in text.lower() for _, _, text in visit.shown())
        page.click("#reset")
        page.fill("#by-text", "<script>alert(1)")
        visit.waits_for(re.compile("^[1-5]?[0-9] of"))
        assert all("<script>alert(1)</script>" in text for _, _, text in visit.shown())
        page.click("#reset")
        for order, sign in (("high", -1), ("low", 1)):
            page.select_option("#sort", order)
            known = [sign * float(yes) for _, yes, _ in visit.shown() if yes is not None]
            assert known == sorted(known)
            assert visit.shown()[-1][1] is None  # without a probability: at the end
        assert not visit.said


def test_it_is_usable_by_keyboard(browser, report):
    with Visit(browser, report) as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "by-text"
        page.keyboard.type("island/ nothing has this")
        visit.waits_for("0 of 200 records shown")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "sort"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.inner_text("#shown") == "200 of 200 records shown"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        scrolls = "all => all.every(one => one.tabIndex === 0)"
        assert page.eval_on_selector_all(".wide, pre", scrolls)  # what scrolls can be reached


def test_without_script_everything_can_be_read(browser, report):
    with Visit(browser, report, java_script_enabled=False) as visit:
        assert visit.page.locator("article.record").count() == 200
        assert not visit.page.locator("#filters").is_visible()
        assert "water is on the" in visit.page.text_content("main")
        assert not visit.leaving()


CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => { for (; one; one = one.parentElement) {
    const found = parts(getComputedStyle(one).backgroundColor); if (found[3] !== 0) return found; } };
  return Array.from(document.querySelectorAll("p, td, th, h1, h2, label, .badge, small, .tile span"), (one) => {
    const [a, b] = [light(parts(getComputedStyle(one).color)), light(ground(one))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.className + " " + one.tagName];
  }).sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark_and_on_a_phone(browser, report, scheme):
    with Visit(browser, report, color_scheme=scheme, viewport={"width": 375, "height": 800}) as visit:
        ratio, what = visit.page.evaluate(CONTRAST)
        assert ratio >= 4.5, what  # WCAG AA
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(19, 24, 29)") == (scheme == "dark")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375


def _photograph(seed):
    """512 x 384, JPEG: smooth shapes and noise, as heavy as a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:384, 0:512]
    waves = [128 + 90 * np.sin(x / rng.uniform(8, 60) + y / rng.uniform(8, 60) + c) for c in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 12, (384, 512, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def test_two_thousand_records_stay_below_ten_megabytes(browser, tmp_path):
    pictures = [_photograph(seed) for seed in range(8)]
    rows = [made_up_row(i) for i in range(2000)]
    for i, row in enumerate(rows):
        row["caption"] = HOSTILE * 20 if i % 2 else "A long caption that goes on. " * 80
        row["image"] = pictures[i % 8] if row["image"] else None
        if row["instruction"]:
            row["informative"] = "The water lies on the left side, as the blue area says. " * 20
    config = parse_config({"run": {"name": "big", "output": str(tmp_path / "run")}, "report": {"gallery": 2000}})
    page = Path(build_report(config, fill_run(RunFolder(str(tmp_path / "run")), rows)))
    assert page.stat().st_size < 10_000_000
    with Visit(browser, page.as_uri()) as visit:
        assert visit.page.locator("article.record").count() == 2000
        assert visit.page.locator("article.record img").count() == sum(row["image"] is not None for row in rows)
        visit.page.select_option("#by-verdict", "judged_open")
        assert len(visit.shown()) == sum(row["task_verdict"] == "judged_open" for row in rows)
        assert not visit.said


def test_on_s3_the_pictures_have_signed_addresses(browser, tmp_path):
    from adamllm_ray.data import s3

    with local_bucket():
        settings = {"run": {"name": "remote", "output": "s3://runs/report"}, "report": {"thumbnails": "presigned"}}
        config = parse_config(settings | {"report": {"thumbnails": "presigned", "gallery": 12}})
        run = RunFolder.of(config.run)
        written = build_report(config, fill_run(run, [made_up_row(i) for i in range(30)]))
        assert written == "s3://runs/report/report/index.html"
        address = s3.presigned("runs/report/report/index.html", config.run.s3, 600)
        server = address.partition("/runs/")[0]
        with Visit(browser, address) as visit:
            images = visit.page.locator("article.record img")
            assert images.count() > 5
            for picture in images.all():
                picture.scroll_into_view_if_needed()
                assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 60
            assert all(url.startswith((server, "data:")) for url in visit.requests)
            assert all("X-Amz-Algorithm=AWS4-HMAC-SHA256" in url for url in visit.requests)
            assert not visit.said
            assert "168 hours" in visit.page.inner_text("footer")
