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
from adamllm_ray.evaluation.intervals import ALPHA, p_words
from adamllm_ray.quality import measure
from adamllm_ray.quality.contamination import read_summary
from adamllm_ray.quality.profile import JUDGED

RIGHT_OR_WRONG = frozenset(
    {"auto", "yes_no", "choice", "numbered_choice", "category", "exact"}
)  # strict metrics, 0 or 1
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
    Verdict.ENGINE_DIED: "the engine did not survive the row",
    Verdict.EXAMPLE_TOO_LONG: "more tokens than training.max_length",
    Verdict.NOTHING_TO_LEARN: "no token of the example would carry loss",
    Verdict.CONTAMINATED: "also in an evaluation set; left out of training",
    Verdict.NOT_DRAWN: "the mixture left it out in every epoch",
    Verdict.TRIAL_STOPPED: "the trial was ended on its way",
    Verdict.TRIAL_FAILED: "the trial died for good",
}

LOST_WORDS = {  # of questions: short, behind their number
    Verdict.ROW_UNREADABLE: "malformed",
    Verdict.IMAGE_MISSING: "without an image",
    Verdict.DUPLICATE: "with an id that came before",
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
    """(tone, verdict in a few words, the numbers in a sentence): of the mean over question types, as compare judges."""
    if scores is None:
        return "even", "Not evaluated yet", "This run has no scores: evaluation.task is empty or has not run."
    base, adapted = (scores["models"][name]["average"] for name in ("base", "adapted"))
    gain = scores["difference"]["average"]
    words = {"good": "Post-training helped", "bad": "Post-training hurt", "even": "No difference could be shown"}
    kinds = len(scores["types"])
    mean = f", in the mean over {kinds} question types," if kinds > 1 else ""
    verb, right = ("scores", "") if graded(scores) else ("answers", " right")
    sentence = (
        f"On the same {base['n']} questions{mean} the adapted model {verb} {percent(adapted['accuracy'])}{right}, the "
        f"base model {percent(base['accuracy'])}: {points(gain['value'])} points (95 % interval {points(gain['lo'])} "
        f"to {points(gain['hi'])}, {p_words(gain['p'])})."
    )
    return tone(gain), words[tone(gain)], sentence + _beside_baselines(scores, adapted)


def denominator(task: Mapping[str, Any]) -> str:
    """'n = 96 of 100 rows, 4 malformed': what a task's scores are means over, and what is not in them."""
    lost = lost_rows(task)
    return f"n = {task['n']:,} of {task['rows']:,} rows" + (f", {lost}" if lost else "")


def lost_rows(task: Mapping[str, Any]) -> str:
    """'4 malformed, 1 without an image': rows of a task that could not be asked or scored, by verdict."""
    counts = sorted(task.get("verdicts", {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {LOST_WORDS.get(name, name.replace('_', ' '))}" for name, count in counts)


def tone(gain: Mapping[str, Any]) -> str:
    """'good', 'bad' or 'even' of a difference, decided as `evaluation.intervals.verdict` does: by p, at 5 %.

    For right-or-wrong answers interval and p come from different tests, so that an interval may just miss zero where p
    is above 5 %; a page whose colour goes by one and whose sentence goes by the other contradicts itself.
    """
    if gain["p"] is None or gain["p"] >= ALPHA:
        return "even"
    return "good" if gain["value"] > 0 else "bad"


def graded(scores: Mapping[str, Any], *, general: bool = False) -> bool:
    """Whether a strict score may lie between right and wrong, or it is not known: then it is no share of right ones.

    ``general`` asks about the tasks of the forgetting check instead of the domain's.
    """
    tasks: Mapping[str, Any] = scores.get("tasks") or {}
    asked = [task for task in tasks.values() if bool(task.get("general")) == general]
    metrics = {metric for task in asked for column in task.get("types", {}).values() for metric in column}
    return not metrics or not metrics <= RIGHT_OR_WRONG


def _beside_baselines(scores: Mapping[str, Any], adapted: Mapping[str, Any]) -> str:
    known = {name: item["average"] for name, item in scores["baselines"].items() if item["average"] is not None}
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


def duration(seconds: float) -> str:
    """75.2 -> '1 min 15 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
