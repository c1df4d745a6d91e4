"""The search of a run (`adamllm tune`) as rows of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamllm_ray.data.verdicts import Verdict

SHOWN = 20  # trials


def search_rows(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the section shows, None when nothing was searched.

    What `tuning.runner.summary` found, and ``rows`` (the best trials with their ``values`` in words), ``stopped`` and
    ``failed`` (counts), ``dimensions`` {name, best, interval, importance}.
    """
    if not found:
        return None
    done = [trial for trial in found["trials"] if trial["verdict"] == Verdict.OK]
    done.sort(key=lambda trial: -trial["score"])
    return dict(found) | {
        "rows": [{"values": [_word(value) for value in _values(trial).values()], **trial} for trial in done[:SHOWN]],
        "stopped": sum(trial["verdict"] == Verdict.TRIAL_STOPPED for trial in found["trials"]),
        "failed": sum(trial["verdict"] == Verdict.TRIAL_FAILED for trial in found["trials"]),
        "dimensions": [_dimension(name, found) for name in found["columns"]],
    }


def _dimension(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    fitted = found["surface"] or {}
    interval = fitted.get("interval", {}).get(name) if name in found["sources"] else None
    return {
        "name": name,
        "best": _word(_values(found["best"])[name]),
        "interval": None if interval is None else " to ".join(_word(end) for end in interval),
        "importance": fitted.get("importance", {}).get(name),
    }


def _values(trial: Mapping[str, Any]) -> dict[str, Any]:
    return trial["weights"] | trial["fields"]


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
