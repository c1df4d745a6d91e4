"""The run folder -> plain values for the page and the terminal. Stages that have not run are simply absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adamllm_ray.config import RunConfig
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError
from adamllm_ray.quality import measure
from adamllm_ray.quality.contamination import read_summary
from adamllm_ray.quality.profile import JUDGED

STAGES = ("ingest", "synthesize", "tune", "train", "evaluate")
VERDICT_WORDS: dict[Verdict, str] = {
    Verdict.OK: "usable",
    Verdict.DUPLICATE: "same content as an earlier row; marked, not used again",
    Verdict.NEAR_DUPLICATE: "nearly the image of an earlier row; marked, not used again",
    Verdict.ROW_UNREADABLE: "malformed row",
    Verdict.IMAGE_MISSING: "no image where the row says",
    Verdict.IMAGE_EMPTY: "image of zero bytes",
    Verdict.IMAGE_UNRECOGNISED: "not an image format that is read",
    Verdict.IMAGE_TRUNCATED: "image ends early or is damaged",
    Verdict.IMAGE_TOO_MANY_BYTES: "image file over the limit",
    Verdict.IMAGE_TOO_MANY_PIXELS: "more pixels than the limit",
    Verdict.IMAGE_TOO_SMALL: "a side below the limit",
    Verdict.IMAGE_EXTREME_ASPECT: "too long and thin",
    Verdict.CAPTION_EMPTY: "no caption",
    Verdict.CAPTION_TOO_LONG: "caption over the limit",
    Verdict.KEPT: "judge: the two answers agree",
    Verdict.NOT_SYNTHESIZED: "the pair itself was not usable; no model was asked",
    Verdict.PROMPT_TOO_LONG: "does not fit into the model's context",
    Verdict.RESPONSE_EMPTY: "the synthesizer wrote nothing",
    Verdict.RESPONSE_TRUNCATED: "the response hit the token limit",
    Verdict.RESPONSE_UNPARSABLE: "no question with both answers in the response",
    Verdict.RESPONSE_REPEATS: "the response repeats itself until the token limit",
    Verdict.RESPONSE_UNSAFE: "the task holds a URL that the caption does not have",
    Verdict.JUDGED_INCONSISTENT: "judge: the two answers disagree",
    Verdict.JUDGED_OPEN: "judge: the question has no single answer",
    Verdict.ENGINE_ERROR: "the engine refused the row",
    Verdict.EXAMPLE_TOO_LONG: "more tokens than training.max_length",
    Verdict.NOTHING_TO_LEARN: "no token of the example would carry loss",
    Verdict.CONTAMINATED: "also in an evaluation set; left out of training",
    Verdict.NOT_DRAWN: "the mixture left it out in every epoch",
    Verdict.TRIAL_STOPPED: "the trial was ended on its way",
    Verdict.TRIAL_FAILED: "the trial died for good",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the funnel."""

    label: str
    rows: int
    share: float  # of the first step


@dataclass(frozen=True)
class Collected:
    """Everything that is known about a run."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    profile: dict[str, Any] | None = None  # see quality.profile
    contamination: dict[str, Any] | None = None  # see quality.contamination; None when it was not looked for
    ablations: dict[str, Any] = field(default_factory=dict)  # name -> scores of another run

    @property
    def scores(self) -> dict[str, Any] | None:
        """The evaluation's scores, see `evaluation.scores`; None when nothing was scored."""
        found: dict[str, Any] | None = self.values("evaluate").get("scores")
        return found if found and found["models"]["base"]["overall"] else None

    def values(self, stage: str) -> dict[str, Any]:
        """The stage's own values; empty when it has not run."""
        manifest = self.manifests.get(stage)
        return manifest.extra if manifest else {}


def collect(config: RunConfig, run: RunFolder) -> Collected:
    """Read the manifests, what is known of the data (`quality`), and the scores of the runs to compare with.

    Raises:
        ConfigError: ``report.ablations`` names a folder without an evaluation.
        SourceError: ``report.labels`` cannot be read.
    """
    found = {name: run.stage(name).manifest() for name in STAGES}
    manifests = {name: manifest for name, manifest in found.items() if manifest is not None}
    profile = measure.profile(config, run) if "synthesize" in manifests else None
    return Collected(manifests, profile, read_summary(run), _ablations(config))


def _ablations(config: RunConfig) -> dict[str, Any]:
    """Scores of the adapted model of other runs, by the names that they are given here."""
    scores = {}
    for name, folder in config.report.ablations.items():
        manifest = RunFolder(folder, config.run.s3).stage("evaluate").manifest()
        if manifest is None:
            raise ConfigError(f"report.ablations.{name}: {folder} has no finished evaluation")
        scores[name] = manifest.extra["scores"]
    return scores


def funnel(manifests: Mapping[str, Manifest]) -> list[Step]:
    """Rows from the source to training, one step per loss."""
    rows: list[tuple[str, int]] = []
    if ingest := manifests.get("ingest"):
        rows += [("pairs read", ingest.rows_in), ("usable pairs", ingest.kept)]
    if synthesis := manifests.get("synthesize"):
        asked = synthesis.rows_in - synthesis.verdicts.get(Verdict.NOT_SYNTHESIZED, 0)
        judged = sum(synthesis.verdicts.get(verdict, 0) for verdict in JUDGED)
        rows += [("asked the synthesizer", asked), ("task read", judged), ("kept by the judge", synthesis.kept)]
    if train := manifests.get("train"):
        rows.append(("trained on, captions included", train.kept))
    first = rows[0][1] if rows else 0
    return [Step(label, count, count / first if first else 0.0) for label, count in rows]


def keep_rate(manifests: Mapping[str, Manifest]) -> float | None:
    """Kept tasks among those that the judge saw."""
    synthesis = manifests.get("synthesize")
    judged = sum(synthesis.verdicts.get(verdict, 0) for verdict in JUDGED) if synthesis else 0
    return synthesis.kept / judged if synthesis and judged else None


def speed_tiles(train: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(figure, what it is) of how fast training went; MFU only where it is known."""
    speed = train.get("speed")
    if not speed:
        return []
    tiles = [
        (f"{speed['examples_per_second']:.3g}", "examples/s"),
        (f"{speed['tokens_per_second']:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}"), "tokens/s, no padding"),
        (percent(speed["padding"]), "of the computed positions were padding"),
        (percent(speed["data_wait"]), "of the time waited for data"),
    ]
    return tiles + ([(percent(speed["mfu"]), "MFU, the vision tower included")] if speed["mfu"] is not None else [])


def headline(scores: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """(tone, verdict in a few words, the numbers in a sentence). Tone is 'good', 'bad' or 'even'."""
    if scores is None:
        return "even", "Not evaluated yet", "This run has no scores: evaluation.task is empty or has not run."
    base, adapted = (scores["models"][name]["overall"] for name in ("base", "adapted"))
    gain = scores["difference"]["overall"]
    if gain["lo"] > 0:
        tone, words = "good", "Post-training helped"
    elif gain["hi"] < 0:
        tone, words = "bad", "Post-training hurt"
    else:
        tone, words = "even", "No difference could be shown"
    sentence = (
        f"On the same {base['n']} questions the adapted model answers {percent(adapted['accuracy'])} right, the base "
        f"model {percent(base['accuracy'])}: {points(gain['value'])} points (95 % interval {points(gain['lo'])} to "
        f"{points(gain['hi'])}, {p_words(gain['p'])})."
    )
    return tone, words, sentence + _beside_baselines(scores, adapted)


def _beside_baselines(scores: Mapping[str, Any], adapted: Mapping[str, Any]) -> str:
    known = {name: item["overall"] for name, item in scores["baselines"].items() if item["overall"] is not None}
    if not known:
        return ""
    name = max(known, key=lambda key: known[key])
    words = {"majority": "Always giving the most common answer", "colour": "A linear model on mean colour"}[name]
    if adapted["lo"] > known[name]:
        return f" {words} gets {percent(known[name])}."
    return f" But {words[0].lower()}{words[1:]} also gets {percent(known[name])}, within or above its interval."


def percent(share: float | None) -> str:
    """0.715 -> '71.5 %'."""
    return "-" if share is None else f"{100 * share:.1f} %"


def points(share: float, digits: int = 1) -> str:
    """0.29 -> '+29.0'."""
    return f"{100 * share:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_words(p: float | None) -> str:
    """'p < 0.001' or 'p = 0.023'."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def duration(seconds: float) -> str:
    """75.2 -> '1 min 15 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
