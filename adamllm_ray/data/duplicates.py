"""Rows that say again what an earlier row said: marked with the id of the original, never dropped.

* exact: the same bytes and caption. Memory: two 16-byte digests per row, 200 bytes with Python's tables around them
  (benchmarks/ingest.py, a million rows), so 10 million rows want 2 GB, and the closing check of ids as much again.
* near, when ``data.near_duplicates`` is set: the perceptual hash (``imagehash.phash``, 64 bits) differs from that of an
  earlier image in at most so many bits, whatever the captions are. Memory: see `near_bytes_per_original` there.

Near ones are looked up without comparing all pairs: two hashes of distance d share one of their four 16-bit bands up
to d // 4 bits (pigeonhole), so each band is asked for its few neighbours. Nothing within the distance is missed.
"""

from __future__ import annotations

from array import array
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from adamllm_ray.data.record import content_key, record_id
from adamllm_ray.data.verdicts import Verdict

if TYPE_CHECKING:
    from PIL import Image

BANDS, BAND_BITS = 4, 16
_BAND = (1 << BAND_BITS) - 1


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that stay nearly the same when an image is scaled, compressed or slightly recoloured."""
    import imagehash

    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")


class Duplicates:
    """Gives rows their ids and marks the repeated ones; rows must come in the source's order.

    Args:
        distance: bits in which near duplicates may differ; None marks exact ones only.
    """

    def __init__(self, distance: int | None = None) -> None:
        self._first: dict[bytes, bytes] = {}
        self._taken: set[bytes] = set()
        self._near = None if distance is None else NearHashes(distance)

    def mark(self, row: dict[str, Any], perceptual: int | None) -> None:
        """Set ``id``, and the verdict of a usable row that repeats an earlier usable one."""
        id = self._unique_id(row)
        row["id"] = id.hex()
        if row["verdict"] != Verdict.OK:
            return
        original = self._first.setdefault(bytes.fromhex(content_key(row["image"], row["caption"])), id)
        if original is not id:
            row["verdict"] = Verdict.DUPLICATE.value
            row["verdict_detail"] = f"same image and caption as {original.hex()}"
        elif self._near is not None and perceptual is not None:
            self._mark_near(row, id, perceptual, self._near)

    @staticmethod
    def _mark_near(row: dict[str, Any], id: bytes, perceptual: int, near: NearHashes) -> None:
        found = near.nearest(perceptual)
        if found is None:
            near.add(perceptual, id)
            return
        row["verdict"] = Verdict.NEAR_DUPLICATE.value
        row["verdict_detail"] = f"image differs in {found[0]} of 64 bits from {found[1].hex()}"

    def _unique_id(self, row: dict[str, Any]) -> bytes:
        """A source whose keys repeat gets numbered keys, because Ray's ledger needs unique ids."""
        key, number = row["key"], 1
        while True:
            id = bytes.fromhex(record_id(row["image"], row["caption"], f"{row['source']}\x1f{row['key']}"))
            if id not in self._taken:
                self._taken.add(id)
                return id
            number += 1
            row["key"] = f"{key}#{number}"


class NearHashes:
    """64-bit hashes with ids, asked for the nearest within a Hamming distance."""

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._masks = [sum(1 << bit for bit in bits) for n in range(distance // BANDS + 1) for bits in _choose(n)]
        self._bands: list[dict[int, array[int]]] = [{} for _ in range(BANDS)]
        self._hashes = array("Q")
        self._ids = bytearray()

    def add(self, value: int, id: bytes) -> None:
        """Keep a hash under its 16-byte id."""
        number = len(self._hashes)
        self._hashes.append(value)
        self._ids += id
        for band, part in zip(self._bands, _parts(value), strict=True):
            band.setdefault(part, array("I")).append(number)

    def nearest(self, value: int) -> tuple[int, bytes] | None:
        """(distance, id) of the nearest hash, the earliest of equally near ones; None when none is near enough."""
        numbers, distances = self._candidates(value)
        if not len(numbers):
            return None
        best = int(distances.min())
        if best > self._distance:
            return None
        return best, self._id(int(numbers[distances == best].min()))

    def near(self, value: int, most: int) -> list[tuple[int, bytes]]:
        """(distance, id) of all that are near enough, the nearest first, but no more than ``most``."""
        numbers, distances = self._candidates(value)
        inside = distances <= self._distance
        found = sorted(set(zip(distances[inside].tolist(), numbers[inside].tolist(), strict=True)))
        return [(distance, self._id(number)) for distance, number in found[:most]]

    def _candidates(self, value: int) -> tuple[Any, Any]:
        """Numbers of hashes that share a band, nearly, and their distances; a number may come several times."""
        found = [
            band[part ^ mask]
            for band, part in zip(self._bands, _parts(value), strict=True)
            for mask in self._masks
            if part ^ mask in band
        ]
        numbers = np.frombuffer(b"".join(found), np.uint32)
        return numbers, np.bitwise_count(np.frombuffer(self._hashes, np.uint64)[numbers] ^ np.uint64(value))

    def _id(self, number: int) -> bytes:
        return bytes(self._ids[16 * number : 16 * number + 16])


def _choose(count: int) -> Any:
    return combinations(range(BAND_BITS), count)


def _parts(value: int) -> list[int]:
    return [value >> (BAND_BITS * band) & _BAND for band in range(BANDS)]
