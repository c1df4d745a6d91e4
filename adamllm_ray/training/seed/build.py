"""The stage that writes seed data: one row per image and one per record that is in no conversation.

    adamllm seed CONFIG                      or    adamllm run CONFIG with models.synthesizer: tuned

Reads the files of ``seed``, writes ``seed/data/*.parquet`` with SEED_SCHEMA: a training row is the image and its turns,
and every other row says what is wrong. No Ray: the texts of some hundred thousand images fit into memory, and pictures
are read by threads and written as they come.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image

from adamllm_ray import progress
from adamllm_ray.config import ImageLimits, RunConfig
from adamllm_ray.config.seed import FILES, SeedSection
from adamllm_ray.data import images, storage
from adamllm_ray.data.identity import ids_of
from adamllm_ray.data.ingest import LOCAL_READERS, REMOTE_READERS, clean, in_order
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.record import record_id
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.shards import ShardWriter
from adamllm_ray.data.sources import ImageFolder
from adamllm_ray.data.sources.places import source_errors
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ImageRefused, RowAccountingError, SourceError, TooManyFailures, foreign
from adamllm_ray.training.seed.joining import Draws, drawn, usable
from adamllm_ray.training.seed.official import BLANK_SIZE, official_draws
from adamllm_ray.training.seed.records import Gathered, Refused, SeedImage, base_name, gather

STAGE = "seed"
TRAIN, DEV = "train", "dev"
SEED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # captions, precise or informative: whose record this is
        pa.field("key", pa.string(), nullable=False),  # file name of the image, or number of a record in its file
        pa.field("image", pa.binary()),  # encoded; the white one where ``blank``
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),  # the seed's own name of the task
        pa.field("turns", pa.string(), nullable=False),  # JSON list of [role, text]
        pa.field("questions", pa.int32(), nullable=False),  # turns after the caption that ask
        pa.field("blank", pa.bool_(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, dev; empty where the row trains nothing
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_detail", pa.string()),
    ]
)
_CODE = [f"adamllm_ray.training.seed.{name}" for name in ("records", "joining", "official")]

Row = dict[str, Any]


def seed(config: RunConfig, run: RunFolder, *, force_new: bool = False) -> Manifest:
    """Write ``seed/data``. ``extra`` of the manifest: counts of what was made, and of every file's records.

    Raises:
        ConfigError: the section `seed` names no files.
        SourceError: a file cannot be read at all, or no conversation came out.
        TooManyFailures: the failed share passed ``seed.max_failed_share``; names the reasons.
        FingerprintMismatch, StorageError, RowAccountingError: see ``StageFolder``.
    """
    started, section = time.monotonic(), config.seed
    if not section.given:
        raise ConfigError("seed.captions, seed.precise and seed.informative are empty: name the three seed files")
    stage = run.stage(STAGE)
    if stage.begin(fingerprint(config), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            return finished
    stage.clear()
    found = gather(section)
    tally = _Tally(section.max_failed_share, f"{stage.uri}/data")
    writer = ShardWriter(stage, config.data.rows_per_shard, config.data.shard_bytes, SEED_SCHEMA)
    with progress.task(STAGE, len(found.images) + len(found.refused)) as bar:
        for row in _rows(config, found):
            writer.add(row)
            tally.add(row)
            bar.update(tally.rows, f"{tally.failed} failed" if tally.failed else "")
    writer.close()
    tally.conclude()
    if len(ids_of(stage.fs, stage.parquet_files(), stage.data)) != len(found.images) + len(found.refused):
        raise RowAccountingError(f"{stage.data} does not hold one row per image and refused record")
    extra = tally.summary() | {"records": _files(found), "content": tally.digest.hexdigest()}
    seconds = time.monotonic() - started
    return stage.finish(rows_in=tally.rows, verdicts=dict(tally.verdicts), extra=extra, seconds=seconds)


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """What the rows depend on: the files by content, the section without its ceiling, limits, seed and this code."""
    section, digests = config.seed, {}
    for name in FILES:
        place = storage.resolve(getattr(section, name), section.s3)
        with source_errors(place.uri):
            digests[name] = storage.sha256(place)
    return {
        "files": digests,
        "seed": section.model_dump(mode="json", exclude={"max_failed_share", "s3", *FILES}),
        "images": config.data.images.model_dump(),
        "random": config.run.seed,
        "code": code_version(__name__, *_CODE, "adamllm_ray.synthesis.prompts"),
    }


def _rows(config: RunConfig, found: Gathered) -> Iterator[Row]:
    section = config.seed
    fixed = official_draws(found.images) if section.compat == "official" else None
    uri = section.image_folder or storage.resolve(section.captions, section.s3).uri.rpartition("/")[0] or "/"
    folder = ImageFolder(uri, config.data.images.max_bytes, section.s3)
    readers = REMOTE_READERS if uri.startswith("s3://") else LOCAL_READERS
    makers = _Maker(section, config.data.images, folder, fixed, config.run.seed)
    with ThreadPoolExecutor(readers, thread_name_prefix="seed") as pool:
        yield from in_order(pool, makers.row, iter(found.images.items()), 2 * readers)
    yield from map(_refused_row, found.refused)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Rows of images. ``fixed`` are draws by position, where the paper's are asked for."""

    section: SeedSection
    limits: ImageLimits
    folder: ImageFolder
    fixed: dict[str, Draws] | None
    seed: int

    def row(self, named: tuple[str, SeedImage]) -> Row:
        """The row of one image: its conversation, or the verdict that says why it has none."""
        name, image = named
        join = "image" if self.fixed is not None else self.section.join
        verdict = usable(image, join)
        row = _blank_row("captions", name, image) | {"verdict": verdict.value}
        if verdict is not Verdict.OK:
            counts = f"{len(image.precise)} precise and {len(image.informative)} informative questions"
            return row | {"id": record_id(None, row["caption"], name), "verdict_detail": counts}
        try:
            data = self._read(image.path)
            size = images.examine(data, self.limits)[1].size
        except ImageRefused as refused:
            return row | {
                "id": record_id(None, row["caption"], name),
                "verdict": refused.verdict.value,
                "verdict_detail": clean(refused.detail),
            }
        id = record_id(data, row["caption"], name)
        draws = self.fixed[name] if self.fixed is not None else self._drawn(image, join, id)
        if draws.blank:
            data, size = white(size) if self.fixed is None else white(BLANK_SIZE, "JPEG")
        turns = [(role, clean(text)) for role, text in draws.turns]
        made = {"turns": json.dumps(turns), "questions": len(turns) // 2 - 1, "split": DEV if draws.dev else TRAIN}
        width, height = size
        return row | made | {"id": id, "image": data, "width": width, "height": height, "blank": draws.blank}

    def _drawn(self, image: SeedImage, join: str, id: str) -> Draws:
        section = self.section
        return drawn(image, join, section.blank_share, section.dev_share, seed=self.seed, id=id)

    def _read(self, path: str) -> bytes:
        """The image at its path inside the folder, or right in the folder by its name."""
        try:
            return self.folder.read(path)
        except ImageRefused as refused:
            if refused.verdict is not Verdict.IMAGE_MISSING or base_name(path) == path:
                raise
            return self.folder.read(base_name(path))


def white(size: tuple[int, int], kind: str = "PNG") -> tuple[bytes, tuple[int, int]]:
    """(encoded white picture, its size); as large as what it replaces, so that its length tells nothing."""
    buffer = io.BytesIO()
    Image.new("RGB", size, "white").save(buffer, kind)
    return buffer.getvalue(), size


def _blank_row(source: str, key: str, image: SeedImage) -> Row:
    texts = {"source": source, "key": clean(key), "caption": clean(image.caption), "task": clean(image.task)}
    empty: Row = {"image": None, "width": None, "height": None, "turns": "[]", "questions": 0, "blank": False}
    return texts | empty | {"split": "", "verdict_detail": None}


def _refused_row(refused: Refused) -> Row:
    row = _blank_row(refused.file, refused.key, SeedImage(refused.image, ""))
    detail = clean(f"{refused.image[:200]}: {refused.detail}" if refused.image else refused.detail)
    id = record_id(None, refused.image, f"{refused.file}:{refused.key}")
    return row | {"id": id, "verdict": refused.verdict.value, "verdict_detail": detail}


def _files(found: Gathered) -> dict[str, dict[str, Any]]:
    """Per file: records read, and how many are in no conversation, by verdict."""
    refused = {name: Counter(one.verdict.value for one in found.refused if one.file == name) for name in FILES}
    return {name: {"read": found.read[name], "refused": dict(refused[name])} for name in FILES}


@dataclass
class _Tally:
    """Counts, an example of each failure, and the ceiling."""

    ceiling: float
    where: str
    rows: int = 0
    failed: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    blank: int = 0
    questions: int = 0
    tasks: set[str] = field(default_factory=set)
    examples: dict[str, str] = field(default_factory=dict)
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, row: Row) -> None:
        self.rows += 1
        self.verdicts[row["verdict"]] += 1
        self.digest.update(bytes.fromhex(row["id"]) + hashlib.blake2b(row["turns"].encode()).digest())
        if row["verdict"] == Verdict.OK:
            self.splits[row["split"]] += 1
            self.blank += row["blank"]
            self.questions += row["questions"]
            self.tasks.add(row["task"])
            return
        self.failed += Verdict(row["verdict"]).outcome == "failed"
        place = f"record {row['key']} of seed.{row['source']}"
        self.examples.setdefault(row["verdict"], foreign(f"{place}: {row['verdict_detail']}"))

    def conclude(self) -> None:
        """Raise when too much failed, or nothing is left to train on."""
        reasons = "\n".join(f"  {count} x {name}, e.g. {self.examples[name]}" for name, count in self._refused())
        told = f"{reasons}\nEach of them and its reason is in {self.where}." if reasons else ""
        if self.failed > self.ceiling * self.rows:
            raise TooManyFailures(
                f"seed data: {self.failed} of {self.rows} rows failed ({self.failed / self.rows:.1%}; "
                f"seed.max_failed_share is {self.ceiling:.1%}):\n{told} Mend the files, or set seed.max_failed_share "
                "higher, and run the same command again (with --force-new if a file changed)."
            )
        if not self.splits[TRAIN]:
            raise SourceError(f"the seed data give no conversation to train on, of {self.rows} rows:\n{told}")

    def summary(self) -> dict[str, Any]:
        """What was made."""
        counts = {"splits": dict(self.splits), "blank": self.blank, "questions": self.questions}
        return counts | {"tasks": len(self.tasks), "examples": self.examples}

    def _refused(self) -> list[tuple[str, int]]:
        return [(name, count) for name, count in self.verdicts.most_common() if name in self.examples]
