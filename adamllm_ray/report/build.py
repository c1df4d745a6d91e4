"""The report of a run: one self-contained HTML file, ``report/index.html``.

    adamllm report CONFIG

Autoescape is on for every value; pictures and plots are inline; a Content-Security-Policy in the page forbids
scripts and every address. So a caption that holds markup is shown as text, and the file opens from disk anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamllm_ray.config import RunConfig, dump_config
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.report import collect as facts
from adamllm_ray.report.gallery import Card, gallery
from adamllm_ray.report.plots import kinds_of, loss_curve, score_bars, side_curve

REPORT = "report/index.html"


def build_report(config: RunConfig, run: RunFolder) -> str:
    """Write the report of what the run folder holds so far, stages missing or not. Returns the page's path or URI."""
    page = render(config, facts.collect(config, run), _cards(config, run))
    if run.local:
        run.fs.create_dir(f"{run.root}/report", recursive=True)
    run.write(REPORT, page.encode("utf-8"))
    return f"{run.uri}/{REPORT}"


def render(config: RunConfig, found: facts.Collected, cards: list[Card]) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("adamllm_ray", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": facts.percent,
        "points": facts.points,
        "p_words": facts.p_words,
        "duration": facts.duration,
        "count": lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    }
    tone, words, sentence = facts.headline(found.scores)
    losses = found.values("train").get("losses") or []
    return environment.get_template("page.html.j2").render(
        name=config.run.name,
        tone=tone,
        verdict=words,
        sentence=sentence,
        scores=found.scores,
        # The only markup that is not the template's own: SVG from plots.py, whose labels matplotlib escapes.
        bars=Markup(score_bars(found.scores)) if found.scores else "",  # noqa: S704
        curve=Markup(loss_curve(losses)) if len(losses) > 1 else "",  # noqa: S704
        rate_curve=Markup(side_curve(losses, "lr", "learning rate")),  # noqa: S704
        norm_curve=Markup(side_curve(losses, "grad_norm", "gradient norm")),  # noqa: S704
        kinds=kinds_of(losses),
        speed=facts.speed_tiles(found.values("train")),
        last_loss=losses[-1]["loss"] if losses else None,
        steps=facts.funnel(found.manifests),
        keep_rate=facts.keep_rate(found.manifests),
        verdicts=_verdict_rows(found.manifests),
        mixture=_mixture(found.values("train")),
        parts=found.values("train").get("parts") or [],
        right=found.right,
        cards=cards,
        stages=_stage_rows(found.manifests),
        models=_models(config, found),
        versions=_versions(found.manifests),
        config=dump_config(config),
    )


def _cards(config: RunConfig, run: RunFolder) -> list[Card]:
    for name in ("synthesize", "ingest"):
        stage = run.stage(name)
        if stage.manifest() is not None:
            return gallery(stage, config.run.seed, config.data.images)
    return []


def _verdict_rows(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    rows = []
    for stage, manifest in manifests.items():
        for name, count in sorted(manifest.verdicts.items(), key=lambda item: -item[1]):
            verdict = Verdict(name)
            words = facts.VERDICT_WORDS.get(verdict, "")
            row = {"stage": stage, "verdict": name, "outcome": verdict.outcome, "rows": count, "words": words}
            rows.append(row | {"share": count / manifest.rows_in if manifest.rows_in else 0.0})
    return rows


def _mixture(train: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requested and realised share per form of example, the largest first."""
    rows = [
        {"name": form.replace("untasked", "caption (no task)"), **share}
        for form, share in train.get("shares", {}).items()
    ]
    return sorted(rows, key=lambda row: -row["requested"])


def _stage_rows(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    longest = max((manifest.seconds for manifest in manifests.values()), default=0) or 1
    return [
        {"name": name, "manifest": manifest, "share": manifest.seconds / longest}
        for name, manifest in manifests.items()
    ]


def _models(config: RunConfig, found: facts.Collected) -> list[tuple[str, str]]:
    rows = [(role, getattr(config.models, role)) for role in ("base", "synthesizer", "judge")]
    adapted = found.values("train").get("model")
    return [*rows, ("adapted", str(adapted))] if adapted else rows


def _versions(manifests: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    versions: dict[str, str] = {}
    for manifest in manifests.values():
        versions |= manifest.versions
    return sorted(versions.items())
