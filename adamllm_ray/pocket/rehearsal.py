"""A dry run: everything that a configuration asks for, up to the first batch, on tiny stand-ins, in some seconds.

    adamllm run jobs/configs/paper/food_qwen2_vl_2b.yaml --dry-run

What a stage would read or load is replaced: models by ones of the same architecture with random weights, images by made
up ones. The rest is the configuration's own: prompts, protocol, seed joining, mixture, wording, masks, parts, recipe,
batches, engine arguments. Nothing is written outside a temporary folder, no Ray is started, no network is used.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from adamllm_ray.config import ContaminationSection, RunConfig
from adamllm_ray.errors import ConfigError

ROWS = 24
# Words in the name of a model that is not here, and what they mean.
_NAMES = (
    ("qwen2-vl", "qwen2_vl"),
    ("qwen2_vl", "qwen2_vl"),
    ("llama-3.2", "mllama"),
    ("mllama", "mllama"),
    ("idefics", "idefics3"),
    ("smolvlm", "idefics3"),
    ("llava", "llava_next"),
    ("synthesizer", "llava_next"),
)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One training of the dry run: its folder's name, its model, and what its first micro-batch holds."""

    name: str
    architecture: str
    trainable: dict[str, int]
    tokens: int
    labels: int
    loss: float | None  # of the first batch; None where examples are packed, which needs the trainer's own attention


def rehearse(config: RunConfig, like: str | None = None) -> list[Rehearsed]:
    """Go through the configuration's trainings and prompts. ``like``: architecture, where names do not tell it.

    Raises:
        ConfigError, ModelError: what would have stopped the real run.
    """
    with tempfile.TemporaryDirectory(prefix="adamllm-dry-run-") as folder:
        stage = _Stage(Path(folder), like)
        rehearsed = stage.config(config)
        stage.engines(rehearsed)
        return list(stage.trainings(rehearsed))


def architecture_of(spec: str, like: str | None = None) -> str:
    """``model_type`` of a model that need not be here: of its config.json, or by its name. Raises ConfigError."""
    from adamllm_ray.models.checkpoint import POCKET, read_config, resolve_model
    from adamllm_ray.pocket.standins import STANDINS

    if like is None and (spec.startswith(POCKET) or (Path(spec).expanduser() / "config.json").is_file()):
        like = str(read_config(resolve_model(spec))["model_type"])
    found = like or next((kind for word, kind in _NAMES if word in spec.lower()), None)
    if found not in STANDINS:
        raise ConfigError(
            f"no stand-in for {spec}: say which architecture it has with --like, one of {', '.join(STANDINS)}"
        )
    return found


class _Stage:
    """The temporary run: stand-ins, made-up data, and the configuration that points at them."""

    def __init__(self, folder: Path, like: str | None) -> None:
        self.folder, self.like = folder, like

    def model(self, spec: str) -> str:
        """Folder of the stand-in for a model."""
        from adamllm_ray.pocket.standins import STANDINS, standin_tokenizer

        kind = architecture_of(spec, self.like)
        folder = self.folder / kind
        if not folder.exists():
            STANDINS[kind](standin_tokenizer(), folder)
        return str(folder)

    def config(self, config: RunConfig) -> RunConfig:
        """The configuration, with everything that lies elsewhere replaced."""
        from adamllm_ray.pocket.seeds import write_seed

        run = config.run.model_copy(update={"output": str(self.folder / "run"), "upstream": None})
        models = config.models.model_copy(update={"base": self.model(config.models.base)})
        seed = config.seed
        if seed.given:
            files = write_seed(self.folder / "seed", 2 * ROWS)
            seed = seed.model_copy(update=files | {"base": self.model(seed.base)})
        replay = [source.model_copy(update={"path": self._replay(source.name)}) for source in config.mixture.replay]
        return config.model_copy(
            update={
                "run": run,
                "models": models,
                "seed": seed,
                "mixture": config.mixture.model_copy(update={"replay": replay}),
                "contamination": ContaminationSection(),
                "conversations": config.conversations.model_copy(update={"caption_pool": None}),
            }
        )

    def engines(self, config: RunConfig) -> None:
        """Arguments of every pool, and the first prompt under the configured protocol."""
        from adamllm_ray.models.checkpoint import load_processor
        from adamllm_ray.synthesis.engine_arguments import engine_arguments
        from adamllm_ray.synthesis.prompts import synthesis_prompt
        from adamllm_ray.synthesis.protocol import chat_of
        from adamllm_ray.synthesis.triplets import TripletParser

        if config.training.objective == "synthesizer":
            return
        writer = self.model(config.seed.base if config.tunes_synthesizer else config.models.synthesizer)
        pools = {writer: config.synthesis.engine, config.models.base: config.evaluation.engine}
        for folder, settings in pools.items():
            engine_arguments(folder, settings, images=True, seed=0)
        engine_arguments(writer, config.judge.engine, images=False, seed=0)
        chat = chat_of(load_processor(writer), config.synthesis.protocol)
        TripletParser(chat, config.synthesis.question_match)
        synthesis_prompt(chat, "a caption")

    def trainings(self, config: RunConfig) -> Iterator[Rehearsed]:
        """Each pass of the recipe, on made-up rows of the stages it reads."""
        from adamllm_ray.data.run import RunFolder
        from adamllm_ray.training.recipes import passes, synthesizer_pass
        from adamllm_ray.training.seed.build import seed

        run = RunFolder.of(config.run)
        if config.seed.given:
            seed(config, run)
        if config.training.objective == "assistant":
            write_rows(run)
        own = [synthesizer_pass(config)] if config.seed.given and config.training.objective == "assistant" else []
        for each in [*own, *passes(config, run)]:
            yield self._training(each, run)

    def _training(self, training: Any, run: Any) -> Rehearsed:
        from adamllm_ray.models.checkpoint import load_vlm, read_config
        from adamllm_ray.training.books import Books, completed, take_stock
        from adamllm_ray.training.parts import prepare_parts
        from adamllm_ray.training.stream import open_batches

        section, base = training.config.training, training.first
        stage = run.stage(training.name)
        stage.begin({"dry": "run"})
        config = completed(training.config)
        Books(config, stage, take_stock(config, run, stage, base, None, training.source))  # writes the catalog
        source = open_batches(config.model_dump_json(), run.uri, base, 0, 1, stage.name)
        batches = source.load(0)  # a single worker's: the made-up rows would not go round
        batch = next((one for one in batches if one.weight), batches[0])
        model, _ = load_vlm(base, "float32")
        rows = prepare_parts(model, section).rows
        loss = None if section.packing else _loss(model, batch)
        trainable: dict[str, int] = {row.part: row.trainable for row in rows}
        kind = str(read_config(base)["model_type"])
        return Rehearsed(training.name, kind, trainable, batch.tokens, int(batch.weight), loss)

    def _replay(self, name: str) -> str:
        """A file in place of a replay source: a few texts."""
        path = self.folder / f"{name}.jsonl"
        talk = [{"role": "user", "content": "What is 1?"}, {"role": "assistant", "content": "1"}]
        path.write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(4)))
        return str(path)


def _loss(model: Any, batch: Any) -> float:
    """Of a batch. Raises ConfigError where it is not finite."""
    import torch

    with torch.no_grad():
        loss = float(model(**batch.inputs).loss)
    if batch.weight and not math.isfinite(loss):
        raise ConfigError("dry run: the first batch has no finite loss")
    return loss


def write_rows(run: Any, count: int = ROWS) -> None:
    """A finished synthesis of made-up pictures: two thirds with a kept task."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from adamllm_ray.data import storage
    from adamllm_ray.data.record import SYNTHESIZED_SCHEMA

    stage = run.stage("synthesize")
    stage.begin({"dry": "run"})
    storage.make_folder(stage.place.child("data"))
    rows = [made_up_row(number) for number in range(count)]
    pq.write_table(pa.Table.from_pylist(rows, SYNTHESIZED_SCHEMA), f"{stage.data}/part-0.parquet", filesystem=stage.fs)
    kept = sum(row["task_verdict"] == "kept" for row in rows)
    stage.finish(rows_in=count, verdicts={"kept": kept, "judged_open": count - kept}, seconds=0.0)


def made_up_row(number: int) -> Mapping[str, Any]:
    """A row as synthesis writes it."""
    from adamllm_ray.data.record import SYNTHESIZED_SCHEMA, record_id
    from adamllm_ray.pocket import language
    from adamllm_ray.pocket.architecture import IMAGE_SIDE
    from adamllm_ray.pocket.curriculum import picture

    data, facts = picture(number)
    caption, task = language.caption_and_task(list(facts[:4]), Random(number))
    row: dict[str, Any] = dict.fromkeys(SYNTHESIZED_SCHEMA.names)
    row |= {"id": record_id(data, caption, str(number)), "source": "dry run", "key": str(number), "image": data}
    row |= {"width": IMAGE_SIDE, "height": IMAGE_SIDE, "caption": caption, "verdict": "ok"}
    if number % 3 == 0:
        return row | {"task_verdict": "judged_open", "judge_yes": 0.3}
    texts = {"instruction": task.text, "informative": task.informative, "precise": task.precise}
    return row | texts | {"task_verdict": "kept", "judge_yes": 0.9}
