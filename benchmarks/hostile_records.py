"""A source in which every 50th record is hostile, and what must become of each record, known beforehand.

    write_source("s3://runs/soak-source", 20_000)      Parquet files, as a user would have them
    faults = compare(20_000, rows_of_the_result)       lost, doubled, wrong verdict, somebody else's answer

The hostile ones are those of tests/hostile.py, in turn. Two thirds must be refused, each for its own reason; the others
look odd and must come through. A record's name is its number, so nothing here relies on the ids of the product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.verdicts import Verdict
from benchmarks.records import jpeg
from tests import hostile
from tests.synthesis.fakes import number_of

EVERY = 50
FILE_ROWS = 2000
EXAMPLES = 5  # of what is wrong, in the output
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("name", pa.string()), ("image", IMAGE), ("caption", pa.string())])
COLUMNS = ["key", "id", "verdict", "task_verdict", "task_detail", "precise"]  # of the result, for `compare`


@dataclass(frozen=True)
class Hostile:
    """``image``: bytes, or a path that must lead nowhere. ``caption``: None for one that is fine. Equal ones are made

    different by the record's number, or they would be duplicates.
    """

    image: Callable[[int], bytes | str]
    verdict: Verdict
    caption: Callable[[int], str] | None = None


def _png(number: int) -> bytes:
    return hostile.good_png(number)


def _flat(width: int, height: int) -> Callable[[int], bytes]:
    return lambda _: hostile.encode(hostile.picture(width, height))


_bomb = cache(hostile.bomb_png)  # the largest takes a second to make
_gif, _ramp, _frames = cache(hostile.frame_bomb_gif), cache(hostile.ramp_png_16), cache(hostile.animation)

HOSTILE: dict[str, Hostile] = {
    "empty": Hostile(lambda _: b"", Verdict.IMAGE_EMPTY),
    "html": Hostile(lambda _: hostile.RARE["html"], Verdict.IMAGE_UNRECOGNISED),
    "psd": Hostile(lambda _: hostile.RARE["psd"], Verdict.IMAGE_UNRECOGNISED),
    "svg": Hostile(lambda _: hostile.RARE["svg"], Verdict.IMAGE_UNRECOGNISED),
    "truncated": Hostile(lambda number: _png(number)[:-300], Verdict.IMAGE_TRUNCATED),
    "bomb of 88 MP": Hostile(lambda _: _bomb(9_400, 9_400), Verdict.IMAGE_TOO_MANY_PIXELS),
    "bomb of 400 MP": Hostile(lambda _: _bomb(20_000, 20_000), Verdict.IMAGE_TOO_MANY_PIXELS),
    "frame bomb": Hostile(lambda _: _gif(), Verdict.IMAGE_TOO_MANY_PIXELS),
    "one pixel": Hostile(_flat(1, 1), Verdict.IMAGE_TOO_SMALL),
    "strip": Hostile(_flat(2000, 20), Verdict.IMAGE_EXTREME_ASPECT),
    "missing": Hostile(lambda number: f"images/{number}.png", Verdict.IMAGE_MISSING),
    "outside": Hostile(lambda _: "../../etc/passwd", Verdict.IMAGE_MISSING),
    "address": Hostile(lambda _: "http://169.254.169.254/latest/meta-data", Verdict.IMAGE_MISSING),
    "no caption": Hostile(_png, Verdict.CAPTION_EMPTY, lambda _: " \n\u200b\u00a0"),
    "long caption": Hostile(_png, Verdict.CAPTION_TOO_LONG, lambda _: "x" * 20_001),
    "twice": Hostile(lambda number: jpeg(number - 1), Verdict.DUPLICATE, lambda number: _caption(number - 1)),
    "special tokens": Hostile(_png, Verdict.OK, lambda number: f"{hostile.SPECIAL_CAPTION} {number}"),
    "control": Hostile(_png, Verdict.OK, lambda number: f"a\0b \u202eRTL e\u0301\u0302\u0303 \x1b[31m {number}"),
    "turned": Hostile(lambda _: hostile.exif_jpeg(6), Verdict.OK),
    "sixteen bits": Hostile(lambda _: _ramp(), Verdict.OK),
    "animated": Hostile(lambda _: _frames("GIF", 3), Verdict.OK),
    "transparent": Hostile(lambda _: hostile.encode(hostile.picture().convert("LA")), Verdict.OK),
}


def hostile_kind(number: int) -> str | None:
    """Which one the record is; None of an ordinary one."""
    position, left = divmod(number, EVERY)
    return list(HOSTILE)[position % len(HOSTILE)] if left == EVERY - 1 else None


def expected(number: int) -> Verdict:
    """What ingest must say of the record."""
    kind = hostile_kind(number)
    return Verdict.OK if kind is None else HOSTILE[kind].verdict


def usable(rows: int) -> int:
    """Records that an engine must be asked for."""
    return sum(expected(number) is Verdict.OK for number in range(rows))


def record(number: int) -> dict[str, Any]:
    """One row of the source."""
    kind = hostile_kind(number)
    image: bytes | str = jpeg(number) if kind is None else HOSTILE[kind].image(number)
    caption = HOSTILE[kind].caption if kind is not None else None
    is_path = isinstance(image, str)
    return {
        "name": name_of(number),
        "image": {"bytes": None if is_path else image, "path": image if is_path else None},
        "caption": (caption or _caption)(number),
    }


def name_of(number: int) -> str:
    """The record's key."""
    return f"record-{number:08}"


def _caption(number: int) -> str:
    return f"picture {number}"


def write_source(uri: str, rows: int) -> None:
    """Parquet files of `FILE_ROWS` records below ``uri``."""
    place = storage.resolve(uri)
    storage.make_folder(place)
    for start in range(0, rows, FILE_ROWS):
        table = pa.Table.from_pylist([record(n) for n in range(start, min(start + FILE_ROWS, rows))], SCHEMA)
        pq.write_table(table, f"{place.path}/part-{start // FILE_ROWS:05}.parquet", filesystem=place.fs)


@dataclass
class Comparison:
    """How a result differs from what it must be: all four are 0 in the end, or something is wrong."""

    lost: int = 0
    doubled: int = 0
    wrong_verdicts: int = 0  # another one than expected, of any record
    misplaced_answers: int = 0  # the answer of another row
    hostile: int = 0
    hostile_as_expected: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def faultless(self) -> bool:
        """Nothing lost, doubled, misjudged or misplaced."""
        return not (self.lost or self.doubled or self.wrong_verdicts or self.misplaced_answers)

    def note(self, what: str) -> None:
        """Keep the first few."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(what)


def compare(rows: int, found: Iterable[Mapping[str, Any]]) -> Comparison:
    """Hold rows of the result (with `COLUMNS`) against the source they were made from."""
    result, times = Comparison(), Counter[str]()
    wanted = {name_of(number): number for number in range(rows)}
    for row in found:
        times[row["key"]] += 1
        if times[row["key"]] > 1 or row["key"] not in wanted:  # a row that nobody gave in is one too many as well
            result.doubled += 1
            result.note(f"{row['key']}: not in the source, or a second time")
            continue
        _compare_row(result, wanted[row["key"]], row)
    lost = sorted(wanted.keys() - times.keys())
    result.lost = len(lost)
    for name in lost[:EXAMPLES]:
        result.note(f"{name}: lost")
    return result


def _compare_row(result: Comparison, number: int, row: Mapping[str, Any]) -> None:
    verdict, kind = expected(number), hostile_kind(number)
    wanted = (verdict, Verdict.KEPT) if verdict is Verdict.OK else (verdict, Verdict.NOT_SYNTHESIZED)
    right = (row["verdict"], row["task_verdict"]) == wanted
    if verdict is not Verdict.OK:
        right = right and row["task_detail"] == verdict
    result.verdicts[row["verdict"]] += 1
    result.hostile += kind is not None
    result.hostile_as_expected += kind is not None and right
    if not right:
        result.wrong_verdicts += 1
        result.note(f"{row['key']} ({kind or 'ordinary'}): {row['verdict']}, {row['task_verdict']}, not {wanted}")
    elif verdict is Verdict.OK and row["precise"] != f"circle {number_of(row['id'])}":
        result.misplaced_answers += 1
        result.note(f"{row['key']}: the answer '{row['precise']}' is another row's")
