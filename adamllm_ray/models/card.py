"""The model card: README.md of the exported model, by the rules of the Hugging Face hub.

    refresh_card(config, run)          # after training, and again after evaluation, with the scores

Everything in it comes from the manifests, so it can be written again at any time: the training stage writes it, the
evaluation stage adds its scores, and the file is signed anew each time (README.md is no part of a model's
fingerprint, so no later stage is repeated for it). It names counts, shares and settings; no path, caption or image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adamllm_ray.config import RunConfig
from adamllm_ray.models.checkpoint import POCKET, model_fingerprint
from adamllm_ray.models.fetch import is_hub_id

if TYPE_CHECKING:
    from adamllm_ray.data.manifest import Manifest
    from adamllm_ray.data.run import RunFolder

CARD = "model/README.md"
LICENSE = "license-of-the-base-model"
_SETTINGS = (
    "epochs",
    "max_steps",
    "global_batch",
    "max_length",
    "packing",
    "learning_rate",
    "schedule",
    "warmup_share",
    "weight_decay",
    "betas",
    "clip_norm",
    "precision",
    "zero_stage",
)
_LAST = 20  # steps that the final losses are means over

Values = Mapping[str, Any]


def refresh_card(config: RunConfig, run: RunFolder) -> Manifest:
    """Bring ``train/model/README.md`` up to date with the manifests of the run. Returns the training manifest.

    Raises:
        StorageError: the run folder cannot be read or written.
    """
    stage = run.stage("train")
    manifests = {name: run.stage(name).manifest() for name in ("ingest", "synthesize", "train", "evaluate")}
    there = {name: manifest for name, manifest in manifests.items() if manifest is not None}
    scores = None
    if "evaluate" in there:  # of this very model, not of one that was in its place before
        scored = there["evaluate"].fingerprint.get("models", {}).get("adapted")
        if scored == model_fingerprint(f"{stage.uri}/model", config.run.s3):
            scores = there["evaluate"].extra.get("scores")
    return stage.replace_file(CARD, card(config, there, scores).encode("utf-8"))


def card(config: RunConfig, manifests: Mapping[str, Manifest], scores: Values | None) -> str:
    """The text of the card. ``manifests`` has at least 'train'; ``scores`` as in the evaluate manifest."""
    from huggingface_hub import ModelCardData

    train = manifests["train"]
    name = f"{config.run.name}"
    data = ModelCardData(
        model_name=name,
        base_model=_hub_name(config.models.base),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license="other",
        license_name=LICENSE,
        tags=["adamllm-ray", "domain-adaptation", "vision-language"],
        eval_results=_eval_results(scores) if scores else None,
    )
    sections = [
        f"# {name}",
        "A vision-language model adapted to one domain by single-stage post-training on its captions and on tasks "
        "synthesized from them (Cheng et al., arXiv 2411.19930), with adamllm_ray.",
        *_models(config, manifests),
        *_data(config, manifests),
        *_training(config, train),
        *_scores(scores),
        "## Licence",
        f"To be filled in by the owner. The weights derive from the base model: its licence (`{LICENSE}` above is a "
        "placeholder for it) and the terms of the training data apply.",
        "## Made with",
        table(["package", "version"], sorted(train.versions.items())),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _models(config: RunConfig, manifests: Mapping[str, Manifest]) -> list[str]:
    prints = {"base": manifests["train"].fingerprint.get("model", "")}
    if "synthesize" in manifests:
        asked = manifests["synthesize"].fingerprint
        prints |= {role: asked[role] for role in ("synthesizer", "judge") if isinstance(asked.get(role), str)}
    rows = [(role, public_name(spec), f"`{prints.get(role, '')}`") for role, spec in config.models if role != "adapted"]
    return ["## Models", table(["role", "model", "fingerprint"], rows)]


def _data(config: RunConfig, manifests: Mapping[str, Manifest]) -> list[str]:
    rows = [
        (stage, verdict.replace("_", " "), f"{count:,}")
        for stage in ("ingest", "synthesize", "train")
        if stage in manifests
        for verdict, count in sorted(manifests[stage].verdicts.items(), key=lambda item: -item[1])
    ]
    pairs = manifests["ingest"].rows_in if "ingest" in manifests else manifests["train"].rows_in
    shares = manifests["train"].extra.get("shares", {})
    mixture = [
        (form.replace("untasked", "caption (no task)"), _percent(s["requested"]), _percent(s["realised"]), s["count"])
        for form, s in shares.items()
    ]
    return [
        "## Data",
        f"{pairs:,} image-caption pairs from a private source of kind `{config.data.format}`. Every pair has a verdict "
        "in each stage:",
        table(["stage", "verdict", "rows"], rows),
        "What the model saw, as asked for and as drawn:",
        table(["form", "requested", "realised", "examples"], mixture),
    ]


def _training(config: RunConfig, train: Manifest) -> list[str]:
    section, extra = config.training.model_dump(mode="json"), train.extra
    if not extra.get("losses"):
        return []
    rows = [(key, _plain(section[key])) for key in _SETTINGS if section[key] is not None]
    rows += [(f"lora.{key}", _plain(value)) for key, value in (section["lora"] or {}).items() if value is not None]
    parts = [
        (
            row["part"].replace("_", " "),
            f"{row['parameters']:,}",
            f"{row['trainable']:,}",
            f"{row['learning_rate']:.3g}" if row["trainable"] else "frozen",
        )
        for row in extra.get("parts", [])
    ]
    words = f"{extra['steps']:,} optimizer steps over {extra['examples']:,} examples; seed {config.run.seed}."
    losses = _final_losses(extra["losses"])
    return [
        "## Training",
        words,
        table(["setting", "value"], rows),
        table(["part", "parameters", "trainable", "learning rate"], parts),
        f"Loss (nats per token, mean of the last {min(_LAST, len(extra['losses']))} steps):",
        table(["text", "loss"], [(kind, f"{loss:.4f}") for kind, loss in losses.items()]),
    ]


def _final_losses(losses: Sequence[Values]) -> dict[str, float]:
    """Means over the last steps: of the whole loss, and of each kind of text weighted by its tokens."""
    last = losses[-_LAST:]
    found = {"all": sum(entry["loss"] for entry in last) / len(last)}
    for kind in sorted({kind for entry in last for kind in entry["kinds"]}):
        pairs = [entry["kinds"][kind] for entry in last if kind in entry["kinds"]]
        found[kind] = sum(loss * tokens for loss, tokens in pairs) / sum(tokens for _, tokens in pairs)
    return found


def _scores(scores: Values | None) -> list[str]:
    if not scores or not scores["models"]["base"]["overall"]:
        return ["## Scores", "Not evaluated."]
    models, gain = scores["models"], scores["difference"]
    rows = [
        (kind.replace("_", " "), *_score_cells(*(models[one]["types"][kind] for one in ("base", "adapted"))))
        for kind in scores["types"]
    ]
    rows.append(("**all questions**", *_score_cells(models["base"]["overall"], models["adapted"]["overall"])))
    whole = gain["overall"]
    return [
        "## Scores",
        "Mean score in percent on held-out questions of the domain, greedy decoding, 95 % intervals (Wilson for right "
        "or wrong, bootstrap-t for graded); answers that cannot be read count as wrong.",
        table(["questions", "n", "base model", "this model"], rows),
        f"Difference over all questions, paired: {100 * whole['value']:+.1f} points "
        f"({100 * whole['lo']:+.1f} to {100 * whole['hi']:+.1f}).",
    ]


def _score_cells(base: Values, adapted: Values) -> tuple[int, str, str]:
    cells = [f"{100 * c['accuracy']:.1f} ({100 * c['lo']:.1f} to {100 * c['hi']:.1f})" for c in (base, adapted)]
    return base["n"], cells[0], cells[1]


def _eval_results(scores: Values) -> list[Any] | None:
    from huggingface_hub import EvalResult

    overall = scores["models"]["adapted"]["overall"]
    if not overall:
        return None
    result = EvalResult(
        task_type="visual-question-answering",
        dataset_type="private",
        dataset_name="held-out questions of the domain",
        metric_type="accuracy",
        metric_value=round(100 * overall["accuracy"], 2),
    )
    return [result]


def public_name(spec: str) -> str:
    """How a model may be called outside: hub and pocket names as they are, a folder only as such."""
    return spec if is_hub_id(spec) or spec.startswith(POCKET) else "a private folder"


def _hub_name(spec: str) -> str | None:
    return spec.partition("@")[0] if is_hub_id(spec) else None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
