"""Which records the report shows, and their pictures.

Records are drawn by hash, so the gallery is neither the best of them nor the first; rejected and failed ones have
their places.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from adamllm_ray.config import ImageLimits
from adamllm_ray.data.draws import uniform
from adamllm_ray.data.images import decode
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Outcome, Verdict
from adamllm_ray.errors import ImageRefused

QUOTA: dict[Outcome, int] = {"kept": 14, "rejected": 7, "failed": 3}
THUMBNAIL_SIDE = 360  # pixels, longest side
MAX_TEXT = 700  # characters
COLUMNS = ["id", "image", "caption", "verdict", "verdict_detail"]
TASK_COLUMNS = ["instruction", "informative", "precise", "judge_yes", "judge_no", "judge_open", "response"]


@dataclass(frozen=True, slots=True)
class Card:
    """One record as shown. Texts are raw: the template escapes them."""

    id: str
    image: str | None  # data URI
    caption: str
    verdict: str
    outcome: Outcome
    detail: str
    instruction: str = ""
    informative: str = ""
    precise: str = ""
    response: str = ""  # only where no task could be read from it
    judge: tuple[float, float, float] | None = None  # P(Yes), P(No), P(Open)


def gallery(stage: StageFolder, seed: int, limits: ImageLimits, quota: dict[Outcome, int] = QUOTA) -> list[Card]:
    """Cards of the records in ``stage`` (synthesize, or ingest when synthesis has not run), kept ones first."""
    data = pads.dataset(stage.parquet_files(), filesystem=stage.fs, format="parquet")
    tasks = "task_verdict" in data.schema.names
    columns = ["id", "verdict", *(["task_verdict"] if tasks else [])]
    parts = [(part, part.to_table(columns=columns).to_pylist()) for part in data.get_fragments()]
    chosen = _choose([row for _, rows in parts for row in rows], seed, quota)
    columns = [*COLUMNS, *([*TASK_COLUMNS, "task_verdict", "task_detail"] if tasks else [])]
    by_id: dict[str, dict[str, Any]] = {}
    for part, rows in parts:  # images are read only from files that hold a chosen record
        here = [row["id"] for row in rows if row["id"] in chosen]
        if here:
            table = part.to_table(columns=columns, filter=pads.field("id").isin(pa.array(here, pa.string())))
            by_id |= {row["id"]: row for row in table.to_pylist()}
    return [_card(by_id[name], limits) for name in chosen]


def _choose(rows: list[dict[str, Any]], seed: int, quota: dict[Outcome, int]) -> list[str]:
    """Ids by outcome, each group in hash order; places that a group cannot fill go to the others."""
    groups: dict[str, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: uniform(seed, "gallery", row["id"])):
        groups[_final_verdict(row).outcome].append(row["id"])
    chosen = {outcome: groups[outcome][:count] for outcome, count in quota.items()}
    free = sum(quota.values()) - sum(map(len, chosen.values()))
    for outcome, names in chosen.items():
        more = groups[outcome][len(names) : len(names) + free]
        free -= len(more)
        names += more
    return [name for names in chosen.values() for name in names]


def _final_verdict(row: dict[str, Any]) -> Verdict:
    """The task's verdict; the pair's own where no model was asked."""
    task = row.get("task_verdict")
    return Verdict(row["verdict"] if task in (None, Verdict.NOT_SYNTHESIZED) else task)


def _card(row: dict[str, Any], limits: ImageLimits) -> Card:
    verdict = _final_verdict(row)
    judge = (row.get("judge_yes"), row.get("judge_no"), row.get("judge_open"))
    question = row.get("instruction") or ""
    return Card(
        id=row["id"],
        image=thumbnail(row["image"], limits),
        caption=clip(row["caption"]),
        verdict=str(verdict),
        outcome=verdict.outcome,
        detail=clip(row.get("task_detail") or row.get("verdict_detail") or ""),
        instruction=clip(question),
        informative=clip(row.get("informative") or ""),
        precise=clip(row.get("precise") or ""),
        response="" if question else clip(row.get("response") or ""),
        judge=None if None in judge else tuple(map(float, judge)),  # type: ignore[arg-type]
    )


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """At most ``limit`` characters; characters that cannot be written as UTF-8 are replaced."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[:limit].rstrip() + " …"


def thumbnail(data: bytes | None, limits: ImageLimits) -> str | None:
    """A freshly encoded small picture as a data URI (never the source's own bytes); None if it cannot be decoded."""
    if not data:
        return None
    try:
        picture = decode(data, limits)
    except ImageRefused:
        return None
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    if max(picture.size) <= 128:  # small pictures: PNG is small as well, and exact
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
