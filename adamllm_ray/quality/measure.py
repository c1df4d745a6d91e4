"""All that is said about the data of a run, kept in its folder as ``quality/``.

    adamllm quality CONFIG                     or    adamllm run CONFIG, at its end

The profile reads texts only and is quick; the comparison with the evaluation sets reads every image. Both are done
once: what is there for the same rows, settings and code is taken.
"""

from __future__ import annotations

import json
from typing import Any

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.jsonfile import Damaged, json_records
from adamllm_ray.data.manifest import code_version
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, SourceError, foreign
from adamllm_ray.quality.contamination import EvaluationSets, evaluation_tasks, find_contamination
from adamllm_ray.quality.profile import Check, Profile, labels_by_hand, pocket_labels

PROFILE = "quality/profile.json"
_CODE = [f"adamllm_ray.quality.{name}" for name in ("calibration", "profile", "questions")]


def judge_data(config: RunConfig, run: RunFolder) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(profile, contamination); the latter None when there is no evaluation set to compare with.

    Raises:
        ConfigError: synthesis is not finished.
        SourceError: labels or an evaluation set cannot be read.
    """
    found = profile(config, run)
    if found is None:
        raise ConfigError(f"{run.uri} has no finished synthesis to judge; run `adamllm synthesize` first")
    if not evaluation_tasks(config):
        return found, None
    return found, find_contamination(config, run, EvaluationSets.load(config))


def profile(config: RunConfig, run: RunFolder) -> dict[str, Any] | None:
    """`Profile` of the run's synthesis; None when it is not finished. Raises SourceError for unreadable labels."""
    stage = run.stage("synthesize")
    manifest = stage.manifest()
    if manifest is None:
        return None
    gold, check = _labels(config)
    made_from = {"synthesize": manifest.identity, "gold": gold, "code": code_version(*_CODE), "seed": config.run.seed}
    text = run.read(PROFILE)
    found: dict[str, Any] = {} if text is None else json.loads(text)
    if found.get("made_from") != made_from:
        found = {"made_from": made_from} | Profile(config.run.seed, check).read(stage).result()
        run.write(PROFILE, json.dumps(found, indent=2).encode())
    return found


def _labels(config: RunConfig) -> tuple[str, Check | None]:
    """What they are, in words that change when they do, and the labels."""
    path = config.report.labels
    if path is None:
        return ("the pocket domain's facts", pocket_labels) if config.data.format == "pocket" else ("", None)
    place = storage.resolve(path, config.data.s3)
    try:
        rows = [row for _, row in json_records(place)]
        digest = storage.sha256(place)
    except OSError as error:
        raise SourceError(f"report.labels: cannot read {path}: {error}") from error
    for number, row in enumerate(rows, 1):
        if isinstance(row, Damaged) or not isinstance(row, dict) or not {"id", "right"} <= row.keys():
            raise SourceError(f'report.labels: row {number} of {path} is not {{"id": ..., "right": true or false}}')
        if not isinstance(row["right"], bool):
            raise SourceError(
                f"report.labels: row {number} of {path} has {foreign(repr(row['right']), 40)} as 'right': write true or"
                " false, without quotes"
            )
    return f"labels by hand, {digest[:16]}", labels_by_hand(rows)
