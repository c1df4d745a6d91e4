"""The card of a published data set: README.md by the rules of the Hugging Face hub.

Everything in it comes from manifests, the profile of the data and the configuration; it names no path and no record.
Licences are the owner's to give (`publish.license`, `publish.sources`); what was not said is shown as not said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adamllm_ray.config import RunConfig
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.models.card import public_name, table

_COLUMNS = (
    ("`images`", "one image, encoded as it came"),
    ("`messages`", "caption and task as one conversation (role, content), without placeholder: for TRL"),
    ("`sharegpt`", "the same (from, value) with `<image>` before the first text: for LLaMA-Factory"),
    ("`caption`", "what the source said of the image"),
    ("`instruction`, `informative`, `precise`", "the synthesized task and its two answers"),
    ("`judge_yes`, `judge_no`, `judge_open`", "the judge's probabilities that the answers agree"),
    ("`id`", "digest of image, caption and source key"),
)
_EXAMPLE = """\
```python
from datasets import load_dataset

data = load_dataset("DIR", split="train")
# TRL: SFTTrainer(model, train_dataset=data.select_columns(["messages", "images"]), ...)
```"""
_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))


def card(
    config: RunConfig,
    manifests: Mapping[str, Manifest],
    profile: Mapping[str, Any],
    rows: int,
    left_out: Mapping[str, int],
) -> str:
    """The text of the card. ``manifests``: of ingest and synthesize; ``profile``: see `quality.profile`."""
    title = config.publish.title or config.run.name
    sections = [
        f"# {title}",
        f"{rows:,} images with their captions and a visual instruction task each. The tasks were synthesized from "
        "image and caption by a vision-language model and kept where a judge model found the two answers consistent "
        "(the AdaMLLM method, Cheng et al., arXiv 2411.19930), with adamllm_ray.",
        *_sources(config),
        *_columns(),
        *_made(config, manifests, left_out),
        *_statistics(profile),
        *_use(),
        "## Limits",
        "Tasks and answers were written by a model and checked by another one, not by people. Agreement of two answers "
        "is not truth. Captions are the source's own words.",
    ]
    return f"---\n{_metadata(config, title, rows)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(config: RunConfig, title: str, rows: int) -> str:
    from huggingface_hub import DatasetCardData

    section = config.publish
    data = DatasetCardData(
        pretty_name=title,
        license=section.license,
        language=section.language,
        task_categories=["visual-question-answering", "image-text-to-text"],
        size_categories=next((name for limit, name in _SIZES if rows < limit), "n>10M"),
        tags=["adamllm-ray", "synthetic", "domain-adaptation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        **({"license_name": "see-the-sources"} if section.license == "other" else {}),
    )
    text: str = data.to_yaml()
    return text


def _sources(config: RunConfig) -> list[str]:
    rows = [(source.name, source.licence, source.url or "") for source in config.publish.sources]
    said = table(["source", "licence", "address"], rows) if rows else "Not stated by the owner of this data set."
    models = [(role, public_name(getattr(config.models, role))) for role in ("synthesizer", "judge")]
    return [
        "## Sources and licences",
        said,
        f"Licence of this data set: `{config.publish.license}`. The terms of the sources and of the models that wrote "
        "and judged the tasks apply as well:",
        table(["role", "model"], models),
    ]


def _columns() -> list[str]:
    return ["## Columns", table(["column", "content"], _COLUMNS)]


def _made(config: RunConfig, manifests: Mapping[str, Manifest], left_out: Mapping[str, int]) -> list[str]:
    rows = [
        (stage, verdict.replace("_", " "), f"{count:,}", _percent(count / manifest.rows_in if manifest.rows_in else 0))
        for stage, manifest in manifests.items()
        for verdict, count in sorted(manifest.verdicts.items(), key=lambda item: -item[1])
    ]
    rule = "P(Yes) is the largest" if config.judge.keep == "exact" else f"P(Yes) is at least {config.judge.threshold}"
    words = [
        "## How it was made",
        f"Every pair has a verdict in each stage; here are the tasks with the verdict *kept*. The judge keeps a task "
        f"when {rule}.",
        table(["stage", "verdict", "rows", "share"], rows),
    ]
    gone = [f"{count:,} {name.replace('_', ' ')}" for name, count in left_out.items()]
    return words + ([f"Kept, but left out here: {', '.join(gone)}."] if gone else [])


def _statistics(profile: Mapping[str, Any]) -> list[str]:
    if not profile.get("kept"):
        return []
    judged = sum(row["judged"] for row in profile["types"])
    lengths = [
        (name, f"{row['mean']:.1f}", row["p5"], row["median"], row["p95"]) for name, row in profile["lengths"].items()
    ]
    types = [
        (row["type"], f"{row['kept']:,}", _percent(row["share"]), _percent(row["keep_rate"]))
        for row in profile["types"]
    ]
    distinct = profile["distinct"]["questions"][1]
    return [
        "## Statistics",
        f"Keep rate: {_percent(profile['kept'] / judged)} of the tasks that the judge saw. Different questions: "
        f"{profile['different_questions']:,} of {profile['kept']:,}. Entropy of question types: "
        f"{profile['type_entropy']:.2f} bits"
        + (f"; distinct-2 of questions {distinct:.3f}." if distinct is not None else "."),
        table(["question type", "kept", "share", "keep rate"], types),
        "Words:",
        table(["text", "mean", "5 %", "median", "95 %"], lengths),
        *_judge(profile.get("calibration"), profile.get("agreement")),
    ]


def _judge(calibration: Mapping[str, Any] | None, agreement: Mapping[str, Any] | None) -> Sequence[str]:
    words = []
    if calibration:
        words.append(
            f"The judge against {calibration['n']:,} labels: Brier score {calibration['brier']:.3f} "
            f"({calibration['brier_of_base_rate']:.3f} for the base rate), calibration error "
            f"{calibration['error']:.3f}."
        )
    if agreement:
        words.append(
            f"The judge agrees in {_percent(agreement['agreement'])} of {agreement['n']:,} tasks with the rule that "
            "the precise answer stands in the informative one."
        )
    return words


def _use() -> list[str]:
    return [
        "## Use",
        _EXAMPLE,
        "LLaMA-Factory: `dataset_dir: DIR` and the name in `dataset_info.json`.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
