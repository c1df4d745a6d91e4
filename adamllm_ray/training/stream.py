"""A worker's stream of batches over the run's Parquet rows: the plan, the rows of it that are ours, tensors.

Every worker holds the same plan (all epochs in one list), takes the same window of it for a step, and reads only the
rows of its own micro-batches.
"""

from __future__ import annotations

import json
from typing import Any, cast

from adamllm_ray.config import ConversationSection, TrainingSection, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ExampleRefused
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.models.lean import lean_transformers
from adamllm_ray.training.batches import micro_batches, steps_for
from adamllm_ray.training.catalog import RowReader, read_catalog
from adamllm_ray.training.collate import Batch, Collator
from adamllm_ray.training.conversations import (
    Example,
    conversation_example,
    replayed_turns,
)
from adamllm_ray.training.mix import Entries, Entry, Mixture
from adamllm_ray.training.packing import rope_index
from adamllm_ray.training.wording import Form, single_stage_turns, turn_kinds


def plan(mixture: Mixture, section: TrainingSection) -> Entries:
    """Entries of all epochs, one after the other, cut at ``max_steps``."""
    most = None if section.max_steps is None else section.max_steps * section.global_batch
    parts: list[Entries] = []
    for epoch in range(section.epochs):
        parts.append(mixture.epoch(epoch))
        if most is not None and sum(map(len, parts)) >= most:
            break
    return Entries.joined(parts)[:most]


def refusal_key(entry: Entry, id: str) -> str:
    """Name of one example of a record: what `Batch.refused` is keyed on."""
    return f"{id}/{entry.epoch}/{entry.copy}"


def open_batches(config: str, output: str, base: str, rank: int, world: int, stage: str = "train") -> RowBatches:
    """The stream of one worker of a training, from plain data: what a training worker and its data workers start from.

    Args:
        config: RunConfig as JSON.
        output: the run folder's absolute address.
        base: folder of the model; only its processor and configuration are loaded.
        stage: folder of the training inside the run.
    """
    lean_transformers()
    from transformers import AutoConfig

    settings = parse_config(json.loads(config))
    section, folder = settings.training, RunFolder(output, settings.run.s3).stage(stage)
    catalog = read_catalog(folder)
    mixture = Mixture(catalog.items(settings.mixture.threshold), settings.mixture, settings.run.seed)
    collator = Collator(
        load_processor(base),
        section.max_length,
        limits=settings.data.images,
        packing=section.packing,
        rope=rope_index(AutoConfig.from_pretrained(base, local_files_only=True)) if section.packing else None,
        always_image=True,
    )
    reader = RowReader(catalog, folder.fs)
    wording = settings.conversations
    return RowBatches(plan(mixture, section), mixture, reader, collator, section, wording, rank=rank, world=world)


class RowBatches:
    """`BatchSource` over a plan.

    Attributes:
        steps: optimizer steps in all.
    """

    def __init__(
        self,
        entries: Entries,
        mixture: Mixture,
        reader: RowReader,
        collator: Collator,
        section: TrainingSection,
        wording: ConversationSection | None = None,
        *,
        rank: int,
        world: int,
    ) -> None:
        self.entries, self.mixture, self.reader, self.collator = entries, mixture, reader, collator
        self.section, self.rank, self.world = section, rank, world
        self.wording = wording or ConversationSection()
        self.chat = ChatFormat(
            collator.tokenizer,
            chat_template=getattr(collator.processor, "chat_template", None),
            image_token=collator.image_token,
        )
        self.steps = steps_for(len(entries), section)

    def load(self, step: int) -> list[Batch]:
        """This worker's micro-batches of a step, counted from 0."""
        size = self.section.global_batch
        window = list(self.entries[step * size : (step + 1) * size])
        parts = micro_batches(window, self.section, self.rank, self.world, self._cost)
        rows = self.reader.rows(entry.item for part in parts for entry in part or window[:1])
        return [self._batch(part or window[:1], rows, weighted=bool(part)) for part in parts]

    def _cost(self, entry: Entry) -> int:
        return self.mixture.items.length(entry.item, entry.form)

    def _batch(self, entries: list[Entry], rows: dict[int, dict[str, Any]], *, weighted: bool) -> Batch:
        examples, refused = [], {}
        for entry in entries:
            try:
                examples.append(self._example(entry, rows[entry.item]))
            except ExampleRefused as refusal:
                refused[refusal_key(entry, self.mixture.items.id(entry.item))] = refusal.verdict
        batch = self.collator(examples, weighted=weighted)
        batch.refused.update(refused if weighted else {})
        return batch

    def _example(self, entry: Entry, row: dict[str, Any]) -> Example:
        turns, kinds = self._turns(row, entry)
        key, objective = refusal_key(entry, row["id"]), self.section.objective
        return conversation_example(self.chat, turns, objective, id=key, image=row["image"], kinds=kinds)

    def _turns(self, row: dict[str, Any], entry: Entry) -> tuple[list[Turn], list[str]]:
        if "turns" in row:  # of a replay source, or seed data
            return replayed_turns(json.loads(row["turns"]), row["image"] is not None), [entry.form]
        form: Form = "caption" if entry.form == "untasked" else cast("Form", entry.form)
        draw: dict[str, Any] = {"seed": self.mixture.seed, "epoch": entry.epoch}
        draw["caption_first"] = self.mixture.section.caption_first
        return single_stage_turns(row, form, self.wording, **draw), turn_kinds(row, form, **draw)
