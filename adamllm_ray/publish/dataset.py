"""Kept records -> Parquet shards in the layout that trainers read, streamed; and the card beside them.

    adamllm publish CONFIG --output DIR

Columns: ``messages`` (role, content: what TRL's SFTTrainer takes together with ``images``), ``sharegpt`` (from, value:
the same with ``<image>`` before the first text, as LLaMA-Factory wants it), ``images`` (one, encoded as it came), and
the parts they are made of. The two differ in the placeholder only: LLaMA-Factory counts it, TRL adds its own and would
count it twice. A text that spells a placeholder itself is defused: it would be one.

What may tell more than was meant stays behind: names of files and folders, and the source's other columns (``meta``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray import progress
from adamllm_ray.config import ConversationSection, RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError
from adamllm_ray.publish.card import card
from adamllm_ray.quality import measure
from adamllm_ray.quality.contamination import EvaluationSets, contaminated_ids, find_contamination
from adamllm_ray.training.wording import single_stage_turns, with_pool

ROWS_PER_GROUP = 100  # a viewer of the hub loads a group at a time
SHARD_BYTES = 400 << 20
ROWS_AT_ONCE = 128
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
COLUMNS = ["id", "image", "caption", "caption_instruction", "instruction", "informative", "precise", "further"]
JUDGE = ["judge_yes", "judge_no", "judge_open"]

_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
_SHAREGPT = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
TEXTS = ("id", "caption", "instruction", "informative", "precise")


def _text(name: str) -> dict[str, Any]:
    return {"dtype": name, "_type": "Value"}


FEATURES: dict[str, Any] = {  # what `datasets` reads off the files: without it an image is a struct of bytes
    "id": _text("string"),
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "messages": {"feature": {"role": _text("string"), "content": _text("string")}, "_type": "List"},
    "sharegpt": {"feature": {"from": _text("string"), "value": _text("string")}, "_type": "List"},
    **{name: _text("string") for name in TEXTS[1:]},
    **{name: _text("float32") for name in JUDGE},
}
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("images", pa.list_(_IMAGE)),
        pa.field("messages", pa.list_(_MESSAGE)),
        pa.field("sharegpt", pa.list_(_SHAREGPT)),
        *(pa.field(name, pa.string()) for name in TEXTS[1:]),
        *(pa.field(name, pa.float32()) for name in JUDGE),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


@dataclass
class Published:
    """What was written. ``left_out``: kept records that are not in it, by reason."""

    uri: str
    rows: int = 0
    bytes: int = 0
    files: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def publish(config: RunConfig, run: RunFolder, output: str) -> Published:
    """Write the kept tasks of the run's synthesis as a data set into ``output``, an empty folder or an absent one.

    Records that ``contamination.exclude`` keeps from training are left out here too.

    Raises:
        ConfigError: synthesis is not finished, it kept nothing, or ``output`` holds something.
        StorageError: run folder or output cannot be read or written.
    """
    stage = run.stage("synthesize")
    if stage.manifest() is None:
        raise ConfigError(f"{run.uri} has no finished synthesis to publish; run `adamllm synthesize` first")
    place = storage.resolve(output, config.run.s3)
    with storage.storage_errors("look into the output folder", place.uri):
        if storage.list_files(place):
            raise ConfigError(f"--output {place.uri} is not empty; give a folder that is, so that nothing is mixed")
    excluded = _excluded(config, run)
    done = Published(place.uri)
    with storage.storage_errors("write the data set", place.uri):
        _write(place, _rows(config, run, excluded, done), done)
        if not done.rows:
            raise ConfigError(f"{run.uri} has no kept task to publish")
        _write_texts(config, run, place, done)
    return done


def _write_texts(config: RunConfig, run: RunFolder, place: storage.Location, done: Published) -> None:
    """The card and LLaMA-Factory's description, when the data are there: the card is written last."""
    name = config.publish.title or config.run.name
    columns = {"messages": "sharegpt", "images": "images"}
    described = {dataset_name(name): {"file_name": "data", "formatting": "sharegpt", "columns": columns}}
    manifests = {stage: run.stage(stage).manifest() for stage in ("ingest", "synthesize")}
    there = {stage: manifest for stage, manifest in manifests.items() if manifest is not None}
    text = card(config, there, measure.profile(config, run) or {}, done.rows, done.left_out)
    for file, content in (("dataset_info.json", json.dumps(described, indent=2) + "\n"), ("README.md", text)):
        storage.write_small(place.child(file), content.encode("utf-8"))
        done.files.append(file)
        done.bytes += len(content.encode("utf-8"))


def dataset_name(title: str) -> str:
    """A title as a name without spaces."""
    return "-".join("".join(c if c.isalnum() or c in "-_." else " " for c in title).split()) or "dataset"


def _excluded(config: RunConfig, run: RunFolder) -> pa.Array:
    if not config.contamination.exclude:
        return pa.array([], pa.large_string())
    find_contamination(config, run, EvaluationSets.load(config))
    return contaminated_ids(run, config.contamination.exclude).get("", pa.array([], pa.large_string()))


def _rows(config: RunConfig, run: RunFolder, excluded: pa.Array, done: Published) -> Iterator[dict[str, Any]]:
    """Published rows of all kept tasks, file by file; what is left out is counted."""
    left: Counter[str] = Counter()
    stage, wording = run.stage("synthesize"), with_pool(config.conversations, config.data.s3)
    draw = {"seed": config.run.seed, "epoch": 0, "caption_first": config.mixture.caption_first}
    with progress.task("publish", stage.manifest().rows_in) as bar:  # type: ignore[union-attr]
        seen = 0
        for path in stage.parquet_files():
            with stage.fs.open_input_file(path) as source:
                for batch in pq.ParquetFile(source).iter_batches(
                    ROWS_AT_ONCE, columns=[*COLUMNS, *JUDGE, "task_verdict"]
                ):
                    seen += len(batch)
                    kept = batch.filter(pc.equal(batch["task_verdict"], Verdict.KEPT.value))
                    hit = pc.is_in(kept["id"].cast(pa.large_string()), excluded)
                    left[Verdict.CONTAMINATED.value] += pc.sum(hit).as_py() or 0
                    rows = kept.filter(pc.invert(hit)).to_pylist()
                    yield from (_published(row, wording, draw) for row in rows)
                    bar.update(seen)
    done.left_out = {name: count for name, count in left.items() if count}


def _published(row: dict[str, Any], wording: ConversationSection, draw: Mapping[str, Any]) -> dict[str, Any]:
    """The caption and the task as one conversation, in the order that the first epoch of training has them."""
    texts = {name: _defused(row[name]) for name in TEXTS if name != "id"}
    request = row["caption_instruction"]
    more = [{name: _defused(text) for name, text in task.items()} for task in row["further"] or ()]
    safe = row | texts | {"caption_instruction": None if request is None else _defused(request), "further": more}
    turns = single_stage_turns(safe, "both", wording, **draw)
    speakers = {"user": "human", "assistant": "gpt"}
    shown = ["<image>\n" + turn.text if turn.image else turn.text for turn in turns]
    return {
        "id": row["id"],
        "images": [{"bytes": row["image"], "path": None}],
        "messages": [{"role": turn.role, "content": turn.text} for turn in turns],
        "sharegpt": [{"from": speakers[turn.role], "value": text} for turn, text in zip(turns, shown, strict=True)],
        **texts,
        **{name: row[name] for name in JUDGE},
    }


def _defused(text: str) -> str:
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, f"< {placeholder[1:-1]} >")
    return text


def _write(place: storage.Location, rows: Iterator[dict[str, Any]], done: Published) -> None:
    """Shards of about SHARD_BYTES, written a group of rows at a time."""
    storage.make_folder(place.child("data"))
    group: list[dict[str, Any]] = []
    shard = _Shard(place, done)
    for row in rows:
        group.append(row)
        if len(group) == ROWS_PER_GROUP:
            shard.add(group)
            group = []
    if group:
        shard.add(group)
    shard.close()


class _Shard:
    """The file that is being written."""

    def __init__(self, place: storage.Location, done: Published) -> None:
        self._place, self._done = place, done
        self._number = 0
        self._sink: Any = None
        self._writer: Any = None

    def add(self, group: list[dict[str, Any]]) -> None:
        if self._writer is None:
            name = f"data/train-{self._number:05}.parquet"
            self._sink = self._place.fs.open_output_stream(self._place.child(name).path)
            self._writer = pq.ParquetWriter(self._sink, SCHEMA)
            self._done.files.append(name)
            self._number += 1
        self._writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        self._done.rows += len(group)
        if self._sink.tell() >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._done.bytes += self._sink.tell()
            self._sink.close()
            self._writer = None
