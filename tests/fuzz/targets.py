"""What is fuzzed: five readers of foreign bytes, each as a function from bytes to the name of the outcome.

    outcome = TARGETS["image"]()(data)       # "decoded", or a verdict, or an error of ours

A target answers every input, or it raises: any exception that leaves it is a finding, be it a foreign one from the
package or a `Finding`, for an answer that is wrong (a row that Parquet cannot hold, a record that another parser reads
differently). They are called by Atheris (__main__.py), by the suite on corpora and mutations (test_targets.py), and
the first two by benchmarks/fuzz.py. Limits are lowered where they would only make an input slow.
"""

from __future__ import annotations

import codecs
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa

from adamllm_ray.config import DataSection, ImageLimits, dump_config, load_config
from adamllm_ray.data import images, ingest, jsonfile
from adamllm_ray.data.duplicates import Duplicates
from adamllm_ray.data.record import RECORD_SCHEMA
from adamllm_ray.data.sources import RawPair, read_pairs
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ImageRefused, SourceError
from adamllm_ray.synthesis.triplets import TripletParser, foreign_url
from tests import hostile

Target = Callable[[bytes], str]
LIMITS = ImageLimits(max_pixels=1 << 18, max_bytes=1 << 16)
CHUNK_CHARS = 16  # of the JSON reader's window, so that every record meets its edge
MAX_MEMBER_BYTES = 1 << 10
OVERRIDES = "\n---set---\n"  # in a configuration: what follows are --set options, one a line
GZIP = b"\x1f\x8b"


class Finding(Exception):
    """The package answered, but wrongly."""


def image() -> Target:
    """The decoder: an upright RGB image of the size that its header promised, or a verdict."""

    def target(data: bytes) -> str:
        return image_outcome(data, LIMITS)

    return target


def image_outcome(data: bytes, limits: ImageLimits) -> str:
    """ "decoded" or the verdict."""
    try:
        _, pixels = images.examine(data, limits)
    except ImageRefused as refused:
        return str(refused.verdict)
    if pixels.mode != "RGB" or pixels.info:
        raise Finding(f"{pixels.mode} image with {pixels.info!r:.80}")
    promised = images.upright_size(data, limits)
    if pixels.size != promised:
        raise Finding(f"the header promised {promised}, decoded {pixels.size}")
    return "decoded"


def triplet() -> Target:
    """The parser of responses: the first byte chooses its options, the others are pieces of a response and raw ids."""
    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.synthesis.actors import load_chat

    chat = load_chat(resolve_model("pocket:synthesizer"))
    parsers = [TripletParser(chat, match, use_cut=cut) for match in ("exact", "normalised") for cut in (False, True)]
    pieces = _pieces(parsers[0])
    vocabulary = len(chat.tokenizer) + 100  # ids beyond the tokenizer's own too

    def target(data: bytes) -> str:
        options, body = data[:1] or b"\0", iter(data[1:])
        ids: list[int] = []
        for byte in body:
            ids += pieces[byte] if byte < len(pieces) else [(byte << 8 | next(body, 0)) % vocabulary]
        return triplet_outcome(parsers[options[0] & 3], ids, "length" if options[0] & 4 else "stop")

    return target


def triplet_outcome(parser: TripletParser, ids: Sequence[int], finish_reason: str) -> str:
    """ "triplet" or the verdict."""
    found = parser.parse(ids, finish_reason)
    reading = parser.read(ids, finish_reason)
    if len(reading.triplets) > reading.pairs or reading.pairs > reading.segments:
        raise Finding(f"{len(reading.triplets)} tasks of {reading.pairs} pairs of {reading.segments} turns")
    if isinstance(found, Verdict):
        if found is Verdict.OK or reading.triplets:
            raise Finding(f"{found} with {len(reading.triplets)} tasks")
        return str(found)
    for each in reading.triplets:
        foreign_url(each, "A pond. www.example.org")
        if not (each.question.strip() and each.informative.strip() and each.precise.strip()):
            raise Finding(f"an empty text in {each!r}")
    return "triplet"


def _pieces(parser: TripletParser) -> list[list[int]]:
    """What a byte below their number stands for: a mutation of raw ids would hardly ever make a marker."""
    from tests.strategies import INFORMATIVE, PRECISE

    chat = parser.chat
    texts = [*PRECISE, *INFORMATIVE, " ", "What is shown", "see http://x.org/a", "www.", "\n"]
    markers = [
        chat.user_open,
        chat.assistant_open,
        chat.turn_end,
        (parser.end_id,),
        chat.turn_end[:1],
        chat.user_open[:1],
    ]
    return [list(piece) for piece in (*markers, *map(chat.text_ids, texts))]


def records() -> Target:
    """The ShareGPT reader, JSON list or JSON Lines: a row for each record, fit for Parquet, or a SourceError."""
    folder = _folder()
    (folder / "a.png").write_bytes(hostile.encode(hostile.picture(20, 18)))
    data_file = folder / "data.json"
    section = DataSection(format="sharegpt", path=str(data_file), images=LIMITS, near_duplicates=4)

    def target(data: bytes) -> str:
        data_file.write_bytes(data)
        with patch.object(jsonfile, "_CHUNK_CHARS", CHUNK_CHARS):
            outcome, pairs = _pairs(section)
        _same_as_json(data, pairs, outcome)
        return outcome

    return target


def _same_as_json(data: bytes, pairs: Sequence[RawPair], outcome: str) -> None:
    """The window over a list has to find what a parser finds that holds all of it."""
    if data.removeprefix(codecs.BOM_UTF8)[:4096].lstrip()[:1] != b"[":
        return
    try:
        whole = json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        whole = None
    found = len(pairs) if outcome != "source error" else None
    expected = len(whole) if isinstance(whole, list) else None
    if found != expected:
        raise Finding(f"{found} records, json finds {expected}")


def webdataset() -> Target:
    """The reader of tar shards: rows that Parquet can hold, or one SourceError; and no new file anywhere near."""
    folder = _folder()
    plain, packed = folder / "a.tar", folder / "a.tar.gz"
    limits = LIMITS.model_copy(update={"max_bytes": MAX_MEMBER_BYTES})

    def target(data: bytes) -> str:
        file = packed if data.startswith(GZIP) else plain
        file.write_bytes(data)
        outcome, _ = _pairs(DataSection(format="webdataset", path=str(file), images=limits))
        if surplus := {path.name for path in folder.rglob("*")} - {plain.name, packed.name}:
            raise Finding(f"files were made: {surplus}")
        return outcome

    return target


def _pairs(section: DataSection) -> tuple[str, list[RawPair]]:
    """Everything that a source holds, taken through the checks of ingest into rows of the schema."""
    found: list[RawPair] = []
    outcome = "rows"
    ignored: Counter[str] = Counter()
    try:
        found.extend(read_pairs(section, ignored))
    except SourceError:
        outcome = "source error"
    duplicates = Duplicates(section.near_duplicates)
    for pair in found:
        row, perceptual = ingest._examine(ingest._load(pair), section)
        duplicates.mark(row, perceptual)
        pa.RecordBatch.from_pylist([row], RECORD_SCHEMA).validate(full=True)
        json.loads(row["meta"] or "{}", parse_constant=_no_json)
    json.dumps(ignored, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return outcome if found or outcome != "rows" else "nothing", found


def _no_json(name: str) -> None:
    raise Finding(f"meta holds {name}, which is no JSON")


def config() -> Target:
    """The configuration: refused with ConfigError, or accepted and the same after it was written and read again."""
    file = _folder() / "config.yaml"

    def target(data: bytes) -> str:
        text, _, options = data.partition(OVERRIDES.encode())
        file.write_bytes(text)
        try:
            found = load_config(file, options.decode("utf-8", "replace").splitlines())
        except ConfigError as error:
            str(error).encode("utf-8", "backslashreplace")
            return "refused"
        file.write_text(dump_config(found), "utf-8")
        again = load_config(file)
        if again != found:
            raise Finding("a configuration that was written and read again is another one")
        return "accepted"

    return target


TARGETS: dict[str, Callable[[], Target]] = {
    "image": image,
    "triplet": triplet,
    "records": records,
    "config": config,
    "webdataset": webdataset,
}
_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # folders live as long as the process


def _folder() -> Path:
    made = tempfile.TemporaryDirectory(prefix="fuzz-")
    _KEPT.append(made)
    return Path(made.name)


def corpus(name: str) -> Iterator[Path]:
    """The inputs of a target that are kept in the repository."""
    return iter(sorted((Path(__file__).parent / "corpora" / name).iterdir()))
