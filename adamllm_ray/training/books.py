"""The plan of a training as the driver sees it, and its accounting at the end: a verdict for every record."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adamllm_ray.config import RunConfig
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError

if TYPE_CHECKING:
    from adamllm_ray.quality.contamination import EvaluationSets
    from adamllm_ray.training.catalog import Catalog

_KEPT = ("step", "loss", "lr", "grad_norm", "kinds")  # of each step in the manifest: what a repetition gives again


def forbidden_sets(config: RunConfig) -> EvaluationSets | None:
    """What training data may not repeat, where ``contamination.exclude`` asks for that."""
    from adamllm_ray.quality.contamination import EvaluationSets

    if not config.contamination.exclude:
        return None
    sets = EvaluationSets.load(config)
    if not len(sets):
        raise ConfigError(
            "contamination.exclude names kinds of matches, but there is no evaluation set to compare with: "
            "set evaluation.tasks or contamination.against"
        )
    return sets


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is to train on, whatever the mixture: its rows, and the verdicts of each replay source."""

    catalog: Catalog
    replay: dict[str, dict[str, int]]


def take_stock(
    config: RunConfig, run: RunFolder, stage: StageFolder, base: str, forbidden: EvaluationSets | None
) -> Stock:
    """Read and measure every record once. Replay sources are copied into ``stage``."""
    from adamllm_ray.models.checkpoint import load_processor
    from adamllm_ray.quality.contamination import contaminated_ids, find_contamination
    from adamllm_ray.training.catalog import build_catalog
    from adamllm_ray.training.lengths import Lengths
    from adamllm_ray.training.replay import copy_replay

    replay = copy_replay(config.mixture.replay, config.data.images, stage, config.data.s3)
    contaminated = {}
    if forbidden is not None:
        find_contamination(config, run, forbidden)
        contaminated = contaminated_ids(run, config.contamination.exclude)
    measure = Lengths(load_processor(base), config.data.images)
    return Stock(build_catalog(run.stage("synthesize"), replay.files, measure, contaminated), replay.verdicts)


class Books:
    """The plan as the driver sees it, and the accounting at the end."""

    def __init__(self, config: RunConfig, stage: StageFolder, stock: Stock) -> None:
        from adamllm_ray.training.batches import steps_for
        from adamllm_ray.training.catalog import write_catalog
        from adamllm_ray.training.mix import Mixture
        from adamllm_ray.training.stream import plan

        self.stage, self.catalog, self.replay = stage, stock.catalog, stock.replay
        self.mixture = Mixture(self.catalog.items(config.mixture.agreement), config.mixture, config.run.seed)
        self.entries = plan(self.mixture, config.training)
        self.steps = steps_for(len(self.entries), config.training)
        if not self.steps:
            raise ConfigError("there is nothing to train on: no record is usable under this mixture")
        if config.training.max_steps is None:  # a run that is cut short is judged at its end only
            self.mixture.shares(self.entries)
        write_catalog(self.catalog, stage)

    def verdicts(self, refused: dict[str, str]) -> dict[str, int]:
        """One verdict for each record of the run: ok when it trained at least once."""
        from adamllm_ray.training.mix import DOMAIN
        from adamllm_ray.training.stream import refusal_key

        items = self.mixture.items
        drawn = np.bincount(self.entries.item, minlength=len(items))
        own = items.of_source(DOMAIN)
        counts = Counter({Verdict.OK.value: int((drawn[own] > 0).sum())})
        counts[Verdict.NOT_DRAWN.value] = len(own) - counts[Verdict.OK.value]
        table = self.catalog.table.filter(pc.equal(self.catalog.table["source"], DOMAIN))
        for found in pc.value_counts(table["verdict"]).to_pylist():
            if found["values"] != Verdict.OK:
                counts[found["values"]] += found["counts"]
        fates: dict[int, list[str]] = {}
        for entry in self.entries.take(np.flatnonzero(self._refused(refused))):
            if items.names[items.source[entry.item]] == DOMAIN:
                fates.setdefault(entry.item, []).append(refused[refusal_key(entry, items.id(entry.item))])
        for item, verdicts in fates.items():
            if len(verdicts) == drawn[item]:  # refused every time
                counts.subtract([Verdict.OK.value])
                counts[verdicts[-1]] += 1
        return dict(+counts)

    def _refused(self, refused: dict[str, str]) -> Any:
        """For each entry whether it is one of ``refused``."""
        from adamllm_ray.training.stream import refusal_key

        items = self.mixture.items
        ids = pa.array(sorted({key.split("/")[0] for key in refused}), pa.large_string())
        suspects = np.flatnonzero(pc.is_in(items.ids, ids).to_numpy(zero_copy_only=False))
        mask = np.isin(self.entries.item, suspects)
        for index in np.flatnonzero(mask).tolist():
            (entry,) = self.entries[index : index + 1]
            mask[index] = refusal_key(entry, items.id(entry.item)) in refused
        return mask

    def _replay_verdicts(self) -> dict[str, dict[str, int]]:
        """Counts per source, those that were found contaminated apart from the usable ones."""
        table, found = self.catalog.table, {}
        for name, counts in self.replay.items():
            rows = table.filter(pc.equal(table["source"], name))
            hit = pc.sum(pc.equal(rows["verdict"], Verdict.CONTAMINATED.value)).as_py() or 0
            sound = counts.get(Verdict.OK, 0) - hit
            found[name] = counts | {Verdict.OK.value: sound} | ({Verdict.CONTAMINATED.value: hit} if hit else {})
        return found

    def summary(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """The manifest's own part. Raises MixtureDriftError when refusals have bent the mixture."""
        refused = outcome["refused"]
        used = self.entries.take(~self._refused(refused))
        return {
            "model": f"{self.stage.uri}/model",
            "steps": outcome["steps"],
            "examples": len(used),
            "losses": [{key: report[key] for key in _KEPT} for report in outcome["losses"]],
            "tokens": sum(report["tokens"] for report in outcome["losses"]),
            "speed": speed(outcome["losses"]),
            "shares": {form: asdict(share) for form, share in self.mixture.shares(used).items()},
            "parts": outcome["parts"],
            "refused": dict(Counter(refused.values())),
            "replay": self._replay_verdicts(),
            "resumed": outcome["resumed"],
            "passed_over": outcome["passed_over"],
        }


def speed(reports: list[dict[str, Any]]) -> dict[str, float | None]:
    """Throughput over the steps: medians of rates per second, shares of the whole, FLOPs and seconds in all.

    ``seconds`` is time in steps (waiting for data included), so neither start nor checkpoints nor steps that a death
    took back. Empty for no reports.
    """
    if not reports:
        return {}
    seconds = [report["seconds"] + report["waited"] for report in reports]
    inputs = sum(report["inputs"] for report in reports)
    positions = sum(report["inputs"] / (1 - report["padding"]) for report in reports)
    mfu = [report["mfu"] for report in reports if report["mfu"] is not None]
    return {
        "seconds": sum(seconds),
        "tokens_per_second": median(r["inputs"] / s for r, s in zip(reports, seconds, strict=True)),
        "examples_per_second": median(r["examples"] / s for r, s in zip(reports, seconds, strict=True)),
        "inputs": inputs,
        "padding": 1 - inputs / positions if positions else 0.0,
        "data_wait": sum(report["waited"] for report in reports) / sum(seconds),
        "flops": sum(report["flops"] for report in reports),
        "mfu": median(mfu) if mfu else None,
    }
