"""Training data that are also in an evaluation set: images by bytes and by perceptual hash, questions by their words.

    sets = EvaluationSets.load(config)
    find_contamination(config, run, sets)        # -> quality/contamination.parquet and .json, or what is there already

Sets overlap, so each is compared by itself: a record has a row for every set of which it repeats something.

Every usable record is compared (its caption trains), and the replay sources with it; the question of a record counts
where its task may train. Four kinds of match are told apart: ``image`` (the same bytes), ``near_image``, ``question``
(the same words) and ``near_question``; a templated prompt is compared without its template, too. A question alone
proves little: many people ask whether the heart is enlarged. A record that shares its image *and* what is asked about
that image, exactly or nearly, is the grave case: a ``pair``.

What ``contamination.exclude`` names does not train: the catalog of the training stage gives such records the verdict
``contaminated``. Images are decoded by threads as they stream by; the sets are held as hashes and texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray import progress
from adamllm_ray.config import AskedTask, ContaminationSection, ImageLimits, RunConfig
from adamllm_ray.data import images, storage
from adamllm_ray.data.duplicates import NearHashes, perceptual_hash
from adamllm_ray.data.manifest import code_version
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ImageRefused
from adamllm_ray.evaluation.stores import chunks
from adamllm_ray.evaluation.tasks import Question, task_questions
from adamllm_ray.quality.questions import KnownQuestions, forms, normal, stands_in

FOUND, SUMMARY = "quality/contamination.parquet", "quality/contamination.json"
ROWS_AT_ONCE = 128  # rows with their images, of a file that is read
WRITTEN_AT_ONCE = 8192
EXAMPLES = 12
NEAREST = 8  # images of a set, nearly the record's, whose questions are looked through: blank ones are near thousands
COLUMNS = ["id", "image", "instruction", "further", "turns", "verdict", "task_verdict"]

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # "" for the run's own records, else a replay source
        pa.field("id", pa.string(), nullable=False),
        pa.field("set", pa.string(), nullable=False),  # the evaluation set
        pa.field("image_match", pa.string()),  # "image" | "near_image"
        pa.field("image_question", pa.string()),  # the question whose image it is, the first of several
        pa.field("image_bits", pa.int32()),  # of 64 in which the perceptual hashes differ
        pa.field("question_match", pa.string()),  # "question" | "near_question"
        pa.field("question_id", pa.string()),
        pa.field("similarity", pa.float32()),
        pa.field("pair", pa.bool_()),  # its question is one that is asked about the very image that it repeats
    ]
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a record's image: a digest of its bytes and, if it could be decoded, its perceptual hash."""

    digest: bytes
    perceptual: int | None


def look_at(image: bytes | None, limits: ImageLimits, *, perceptual: bool) -> Seen | None:
    """Hashes of an encoded image; None where there is none."""
    if not image:
        return None
    digest = hashlib.blake2b(image, digest_size=16).digest()
    if not perceptual:
        return Seen(digest, None)
    try:
        return Seen(digest, perceptual_hash(images.decode(image, limits)))
    except ImageRefused:
        return Seen(digest, None)


@dataclass
class _Set:
    """One evaluation set. ``places``: the digest of an image -> (question id, text) of all that is asked about it."""

    near_questions: float | None
    counts: dict[str, int] = field(default_factory=lambda: {"questions": 0, "images": 0, "unusable": 0})
    places: dict[bytes, list[tuple[str, str]]] = field(default_factory=dict)
    hashes: NearHashes | None = None
    numbered: list[bytes] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    known: KnownQuestions[str] | None = None

    def add(self, question: Question, image: Seen | None) -> None:
        self.counts["questions" if question.verdict is Verdict.OK else "unusable"] += 1
        self.texts += [(question.id, form) for form in forms(question.question)]
        if image is None:
            return
        if image.digest not in self.places:
            self.counts["images"] += 1
            if self.hashes is not None and image.perceptual is not None:
                self.hashes.add(image.perceptual, len(self.numbered).to_bytes(16, "little"))
                self.numbered.append(image.digest)
        self.places.setdefault(image.digest, []).append((question.id, question.question))

    def close(self) -> None:
        """All questions are there."""
        self.known, self.texts = KnownQuestions(self.texts, self.near_questions), []

    def match(self, image: Seen | None, questions: Sequence[str]) -> dict[str, Any]:
        """Columns of SCHEMA that say what of this set a record repeats; empty when nothing."""
        found = self._images(image)
        if not found:
            return self._question(questions)
        bits, digest = found[0]
        columns = {
            "image_match": "image" if image is not None and digest == image.digest else "near_image",
            "image_question": self.places[digest][0][0],
            "image_bits": bits,
        }
        asked = [place for _, one in found for place in self.places[one]]
        return columns | self._question(questions) | {"pair": self._asks(questions, asked)}

    def _asks(self, questions: Sequence[str], places: Sequence[tuple[str, str]]) -> bool:
        """Whether one of the questions is asked in one of these places, exactly, nearly or inside a longer prompt."""
        known = KnownQuestions([(id, form) for id, text in places for form in forms(text)], self.near_questions)
        texts = [form for question in questions for form in forms(question)]
        return any(known.find(text) or any(stands_in(text, prompt) for _, prompt in places) for text in texts)

    def _images(self, image: Seen | None) -> list[tuple[int, bytes]]:
        """(bits, digest) of images of this set that this one repeats: the same one first, then the nearest."""
        if image is None:
            return []
        found = [(0, image.digest)] if image.digest in self.places else []
        if self.hashes is None or image.perceptual is None:
            return found
        near = [(bits, self._digest(id)) for bits, id in self.hashes.near(image.perceptual, NEAREST)]
        return found + [one for one in near if one[1] != image.digest]

    def _digest(self, id: bytes) -> bytes:
        return self.numbered[int.from_bytes(id, "little")]

    def _question(self, questions: Sequence[str]) -> dict[str, Any]:
        texts = [form for question in questions for form in forms(question)]
        found = [hit for text in texts if self.known is not None and (hit := self.known.find(text))]
        if not found:
            return {}
        best = max(found, key=lambda hit: hit.similarity)
        kind = "question" if best.exact else "near_question"
        return {"question_match": kind, "question_id": best.key, "similarity": best.similarity}


@dataclass
class EvaluationSets:
    """All questions that a model of this run may be asked, as hashes and texts, set by set."""

    section: ContaminationSection
    limits: ImageLimits
    _sets: dict[str, _Set] = field(default_factory=dict)
    _digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    @classmethod
    def load(cls, config: RunConfig) -> EvaluationSets:
        """Every task of the evaluation and of ``contamination.against``, whole, whatever their limits say.

        Raises:
            SourceError: one of them cannot be read.
        """
        sets = cls(config.contamination, config.data.images)
        limits, s3 = config.data.images, config.data.s3
        sets.fill((name, task_questions(asked, s3, limits)) for name, asked in named_sets(config).items())
        return sets

    def fill(self, sets: Iterable[tuple[str, Iterable[Question]]]) -> None:
        """Add the questions of some sets."""
        distance = self.section.near_images
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for name, questions in sets:
                hashes = None if distance is None else NearHashes(distance)
                one = self._sets[name] = _Set(self.section.near_questions, hashes=hashes)
                for group in chunks(questions, ROWS_AT_ONCE):
                    seen = pool.map(lambda one: look_at(one.image, self.limits, perceptual=distance is not None), group)
                    for question, image in zip(group, seen, strict=True):
                        one.add(question, image)
                        self._digest.update(b"" if image is None else image.digest)
                        self._digest.update(normal(question.question).encode() + b"\0")
                one.close()

    def __len__(self) -> int:
        return sum(counts["questions"] for counts in self.names.values())

    @property
    def names(self) -> dict[str, dict[str, int]]:
        """{questions, images, unusable} of each set."""
        return {name: one.counts for name, one in self._sets.items()}

    @property
    def identity(self) -> str:
        """Hex digest of names, images and questions."""
        return hashlib.blake2b(self._digest.digest() + json.dumps(self.names).encode(), digest_size=16).hexdigest()

    def match(self, image: Seen | None, questions: Sequence[str]) -> list[dict[str, Any]]:
        """For each set of which a record repeats something, the columns of SCHEMA that say so."""
        found = ((name, one.match(image, questions)) for name, one in self._sets.items())
        return [{"set": name} | columns for name, columns in found if columns]


def evaluation_tasks(config: RunConfig) -> list[AskedTask]:
    """What a model of this run is asked, and what it may be asked later; each set once."""
    more = [
        AskedTask(f"contamination.against.{number}", task, False)
        for number, task in enumerate(config.contamination.against)
    ]
    found = {(asked.task.name, asked.task.path, asked.task.split): asked for asked in [*more, *config.evaluation.asked]}
    return list(found.values())


def named_sets(config: RunConfig) -> dict[str, AskedTask]:
    """`evaluation_tasks` by the names that they are shown with: the split, and what else tells two of them apart."""
    tasks = evaluation_tasks(config)
    names = [f"{asked.task.name}, {asked.task.split}" if asked.task.split else asked.task.name for asked in tasks]
    return {
        name if names.count(name) == 1 else f"{name} ({asked.field})": asked
        for name, asked in zip(names, tasks, strict=True)
    }


def find_contamination(
    config: RunConfig, run: RunFolder, sets: EvaluationSets, copied: StageFolder | None = None
) -> dict[str, Any]:
    """Compare everything that may train with the evaluation sets, once. Returns the summary (see `_Books.summary`).

    ``copied``: the stage that replay sources were copied into, if it is not ``train``.

    Raises:
        ConfigError: synthesis is not finished.
        StorageError: the run folder cannot be read or written.
    """
    synthesized = run.stage("synthesize").manifest()
    if synthesized is None:
        raise ConfigError(f"{run.uri} has no finished synthesis to judge; run `adamllm synthesize` first")
    replay = replay_files(copied or run.stage("train"))
    section = config.contamination.model_dump(mode="json", include={"near_images", "near_questions"})
    judged = config.mixture.threshold is not None
    made_from = {
        "synthesize": synthesized.identity,
        "sets": sets.identity,
        "replay": {name: size for name, (_, size) in replay.items()},
        "images": config.data.images.model_dump(mode="json"),
        "code": code_version(__name__, "adamllm_ray.quality.questions", "adamllm_ray.data.duplicates"),
    }
    made_from |= section | {"judged": judged}
    found = read_summary(run)
    if found is not None and found["made_from"] == made_from:
        return found
    books = _Books()
    sources = {"": run.stage("synthesize").parquet_files()} | {name: [path] for name, (path, _) in replay.items()}
    with progress.task("contamination", synthesized.rows_in) as bar:
        _write(run, books.watched(_matches(run, sources, sets, judged=judged), bar))
    summary = {"made_from": made_from} | books.summary(sets)
    run.write(SUMMARY, json.dumps(summary, indent=2).encode())
    return summary


def read_summary(run: RunFolder) -> dict[str, Any] | None:
    """What `find_contamination` found last; None when it has not run."""
    text = run.read(SUMMARY)
    return None if text is None else json.loads(text)


def contaminated_ids(run: RunFolder, kinds: Sequence[str]) -> dict[str, pa.LargeStringArray]:
    """Ids by source ("" for the run's own records) of what repeats an evaluation set in one of these ways."""
    place = run.place.child(FOUND)
    with storage.storage_errors("read what is contaminated", place.uri):
        table = pq.read_table(
            place.path, columns=["source", "id", "image_match", "question_match", "pair"], filesystem=place.fs
        )
    wanted = pa.array(list(kinds), pa.string())
    hit = pc.or_(pc.is_in(table["image_match"], wanted), pc.is_in(table["question_match"], wanted))
    if "pair" in kinds:
        hit = pc.or_(hit, pc.fill_null(table["pair"], False))
    table = table.filter(hit)
    names = table["source"].unique().to_pylist()
    return {
        name: table.filter(pc.equal(table["source"], name))["id"].cast(pa.large_string()).unique() for name in names
    }


def replay_files(stage: StageFolder) -> dict[str, tuple[str, int]]:
    """{name: (path inside the file system, bytes)} of the replay sources that the training stage has copied."""
    folder = stage.place.child("replay")
    return {
        name.removesuffix(".parquet"): (folder.child(name).path, size)
        for name, size in storage.list_files(folder)
        if name.endswith(".parquet")
    }


def _matches(
    run: RunFolder, sources: dict[str, list[str]], sets: EvaluationSets, *, judged: bool
) -> Iterator[list[dict[str, Any]]]:
    """For every record that may train: a row for each set of which it repeats something."""
    near = sets.section.near_images is not None
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for source, files in sources.items():
            for rows in _usable(run, files):
                seen = pool.map(lambda row: look_at(row["image"], sets.limits, perceptual=near), rows)
                for row, image in zip(rows, seen, strict=True):
                    known = {"source": source, "id": row["id"]}
                    yield [known | found for found in sets.match(image, _asked(row, judged=judged))]


def _usable(run: RunFolder, files: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Rows that may train, some at a time; a file is read in its own order."""
    for path in files:
        with storage.storage_errors("read the records", path), run.fs.open_input_file(path) as source:
            parquet = pq.ParquetFile(source)
            names = [name for name in COLUMNS if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=names):
                yield [row for row in batch.to_pylist() if row["verdict"] == Verdict.OK]


def _asked(row: dict[str, Any], *, judged: bool) -> list[str]:
    """The questions that a record may train on. ``judged``: a threshold at training may let any task in."""
    if row.get("turns") is not None:
        return [text for role, text in json.loads(row["turns"]) if role == "user"]
    further = [task["instruction"] for task in row.get("further") or ()]
    first = row.get("task_verdict") == Verdict.KEPT or (judged and row.get("instruction") is not None)
    return [row["instruction"], *further] if first else further


def _write(run: RunFolder, rows: Iterable[dict[str, Any]]) -> None:
    place = run.place.child(FOUND)
    storage.make_folder(run.place.child("quality"))
    empty = dict.fromkeys(SCHEMA.names)
    with (
        storage.storage_errors("write what is contaminated", place.uri),
        place.fs.open_output_stream(place.path) as sink,
    ):
        writer = pq.ParquetWriter(sink, SCHEMA)
        for group in chunks(rows, WRITTEN_AT_ONCE):
            writer.write_table(pa.Table.from_pylist([empty | row for row in group], SCHEMA))
        writer.close()


class _Books:
    """Counts of what streams by."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.by_set: dict[str, Counter[str]] = {}
        self.examples: list[dict[str, Any]] = []

    def watched(self, records: Iterable[list[dict[str, Any]]], bar: Any) -> Iterator[dict[str, Any]]:
        """The rows of those records that repeat something."""
        for rows in records:
            self.rows += 1
            if self.rows % ROWS_AT_ONCE == 0:
                bar.update(self.rows)
            if rows:
                self._count(rows)
                yield from rows

    def _count(self, rows: list[dict[str, Any]]) -> None:
        """One record: in each set that it repeats, and once in all."""
        everything = {"any"}
        for row in rows:
            found = (row.get("image_match"), row.get("question_match"), "pair" if row.get("pair") else None)
            kinds = [kind for kind in found if kind]
            self.by_set.setdefault(row["set"], Counter()).update(kinds)
            everything.update(kinds)
            if row.get("image_match") and len(self.examples) < EXAMPLES:
                self.examples.append(row)
        self.counts.update(everything)

    def summary(self, sets: EvaluationSets) -> dict[str, Any]:
        """{rows, counts, sets: {name: {questions, images, unusable, counts}}, examples}; counts per kind of match."""
        found = {name: counts | {"counts": dict(self.by_set.get(name, {}))} for name, counts in sets.names.items()}
        return {"rows": self.rows, "counts": dict(self.counts), "sets": found, "examples": self.examples}
