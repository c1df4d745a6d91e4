"""The report of a run: one self-contained HTML file, ``report/index.html``.

    adamllm report CONFIG

Autoescape is on for every value; pictures and plots are inline. A Content-Security-Policy in the page forbids every
address and every script but the one that filters the gallery, which it names by its hash. So a caption that holds
markup is shown as text, and the file opens from disk anywhere, also where scripts are off.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from adamllm_ray.config import RunConfig, dump_config
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.evaluation.intervals import p_words
from adamllm_ray.quality.profile import JUDGED
from adamllm_ray.report import collect as facts
from adamllm_ray.report import plots, thumbnails
from adamllm_ray.report.gallery import Card, gallery
from adamllm_ray.report.scoring import metric_rows, score_tables, task_rows
from adamllm_ray.report.search import search_rows

REPORT = "report/index.html"


def build_report(config: RunConfig, run: RunFolder) -> str:
    """Write the report of what the run folder holds so far, stages missing or not. Returns the page's path or URI.

    Raises:
        ConfigError: the section ``report`` asks for what cannot be had.
        SourceError, StorageError: labels or the run folder cannot be read.
    """
    page = render(config, facts.collect(config, run), _cards(config, run))
    run.write(REPORT, page.encode("utf-8"), content_type="text/html; charset=utf-8")
    return f"{run.uri}/{REPORT}"


def render(config: RunConfig, found: facts.Collected, cards: list[Card]) -> str:
    """The page as HTML text."""
    from markupsafe import Markup

    script = files("adamllm_ray.report").joinpath("gallery.js").read_text("utf-8")
    tone, words, sentence = facts.headline(found.scores)
    # The only markup that is not the templates' own: our script, and SVG whose labels matplotlib escapes.
    drawn = {name: Markup(svg) for name, svg in _plots(config, found).items()}  # noqa: S704
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            name=config.run.name,
            policy=_policy(script, cards),
            script=Markup(script) if cards else "",  # noqa: S704
            tone=tone,
            verdict=words,
            sentence=sentence,
            scores=found.scores,
            graded=facts.graded(found.scores or {}),
            tables=score_tables(found.scores, found.ablations),
            tasks=task_rows(found.scores),
            metrics=metric_rows(found.scores),
            plots=drawn,
            kinds=plots.kinds_of(_losses(found)),
            speed=facts.speed_tiles(found.values("train")),
            last_loss=_losses(found)[-1]["loss"] if _losses(found) else None,
            steps=facts.funnel(found.manifests),
            losses=_lost(found.manifests),
            keep_rate=facts.keep_rate(found.manifests),
            threshold=_threshold(config),
            verdicts=_verdict_rows(found.manifests),
            mixture=_mixture(found.values("train")),
            search=search_rows(found.values("tune")),
            parts=found.values("train").get("parts") or [],
            profile=found.profile,
            contamination=found.contamination,
            excluded=config.contamination.exclude,
            cards=cards,
            shown_verdicts=sorted({card.verdict for card in cards}),
            presigned_hours=config.report.presigned_hours if thumbnails.origin(_addresses(cards)) else None,
            stages=_stage_rows(found.manifests, config.report.price_per_hour),
            price=config.report.price_per_hour,
            models=_models(config, found),
            versions=_versions(found.manifests),
            config=dump_config(config),
        )
    )


def environment() -> Any:
    """The page's templates: every value is escaped, an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

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
        "p_words": p_words,
        "tone": facts.tone,
        "duration": facts.duration,
        "count": lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    }
    return environment


def _policy(script: str, cards: Sequence[Card]) -> str:
    """Nothing from anywhere, but inline pictures, the addresses of presigned ones, and the one script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    pictures = " ".join(filter(None, ["data:", thumbnails.origin(_addresses(cards))]))
    allowed = [
        f"img-src {pictures}",
        "style-src 'unsafe-inline'",
        *([f"script-src 'sha256-{digest}'"] if cards else []),
    ]
    return "; ".join(["default-src 'none'", "base-uri 'none'", "form-action 'none'", *allowed])


def _addresses(cards: Sequence[Card]) -> list[str]:
    return [card.image for card in cards if card.image]


def _plots(config: RunConfig, found: facts.Collected) -> dict[str, str]:
    """SVG by name; empty where there is nothing to draw."""
    losses, profile = _losses(found), found.profile or {}
    calibration = profile.get("calibration")
    return {
        "bars": plots.score_bars(found.scores) if found.scores else "",
        "loss": plots.loss_curve(losses) if len(losses) > 1 else "",
        "rate": plots.side_curve(losses, "lr", "learning rate"),
        "norm": plots.side_curve(losses, "grad_norm", "gradient norm"),
        "keep": plots.keep_curve(profile.get("keep_curve", []), _threshold(config)),
        "search": plots.mixture_surface(found.values("tune")) if found.values("tune") else "",
        "reliability": plots.reliability(calibration["bins"]) if calibration else "",
    }


def _losses(found: facts.Collected) -> list[dict[str, Any]]:
    return found.values("train").get("losses") or []


def _threshold(config: RunConfig) -> float | None:
    return None if config.judge.keep == "exact" else config.judge.threshold


def _cards(config: RunConfig, run: RunFolder) -> list[Card]:
    count = config.report.gallery
    for name in ("synthesize", "ingest"):
        stage = run.stage(name)
        if stage.manifest() is not None:
            make = thumbnails.pictures(config, run)
            return gallery(stage, config.run.seed, count, make, thumbnails.text_bytes(count))
    return []


def _lost(manifests: Mapping[str, Manifest]) -> dict[str, list[tuple[str, int]]]:
    """What is missing from each step of the funnel to the one before it: (in words, rows), by the step's label."""
    lost: dict[str, list[tuple[str, int]]] = {}
    steps = {
        "ingest": "usable pairs",
        "synthesize": "",
        "train": "trained on, captions included",
    }
    for stage, manifest in manifests.items():
        for name, count in sorted(manifest.verdicts.items(), key=lambda item: -item[1]):
            verdict = Verdict(name)
            step = steps.get(stage)
            before = "ingest" in manifests and stage != "ingest"
            told = before and (verdict is Verdict.NOT_SYNTHESIZED or name in manifests["ingest"].verdicts)
            if step is None or verdict.outcome == "kept" or told:
                continue
            if stage == "synthesize":
                judged = verdict in JUDGED
                asked = verdict is not Verdict.NOT_SYNTHESIZED
                step = "kept by the judge" if judged else "task read" if asked else "asked the synthesizer"
            lost.setdefault(step, []).append((facts.VERDICT_WORDS.get(verdict, name.replace("_", " ")), count))
    return lost


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


def _stage_rows(manifests: Mapping[str, Manifest], price: float | None) -> list[dict[str, Any]]:
    longest = max((manifest.seconds for manifest in manifests.values()), default=0) or 1
    return [
        {
            "name": name,
            "manifest": manifest,
            "share": manifest.seconds / longest,
            "rate": manifest.rows_in / manifest.seconds if manifest.seconds else None,
            "cost": None if price is None else price * manifest.seconds / 3600,
        }
        for name, manifest in manifests.items()
    ]


def _models(config: RunConfig, found: facts.Collected) -> list[tuple[str, str]]:
    """Role and folder. The adapted model is the one that was scored, which ``models.adapted`` may have named."""
    rows = [(role, getattr(config.models, role)) for role in ("base", "synthesizer", "judge")]
    scored = (found.values("evaluate").get("models") or {}).get("adapted")
    adapted = scored or config.models.adapted or found.values("train").get("model")
    return [*rows, ("adapted", str(adapted))] if adapted else rows


def _versions(manifests: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    versions: dict[str, str] = {}
    for manifest in manifests.values():
        versions |= manifest.versions
    return sorted(versions.items())
