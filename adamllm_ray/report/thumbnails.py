"""Pictures of the gallery: made anew, small enough for the page, inside it or beside it on S3.

A thumbnail is never the source's own bytes. Within the page each gets an equal part of what a page may weigh; beside
it, under ``report/thumbnails/``, it is fetched by an address that was signed when the report was made.
"""

from __future__ import annotations

import base64
import io
from urllib.parse import urlsplit

from adamllm_ray.config import ImageLimits, RunConfig
from adamllm_ray.data import s3, storage
from adamllm_ray.data.images import decode
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, ImageRefused
from adamllm_ray.report.gallery import Picture

PAGE_BYTES = 9_000_000  # for all cards of a gallery: a page of 2,000 stays below 10 MB
TEXTS_SHARE, TEXTS = 0.45, 5  # of a card's bytes, for its texts; how many there are at most
MOST_TEXT, MOST_PICTURE = 1500, 40_000  # bytes
MARKUP = 1100  # bytes of a card beside texts and picture
SIDES = (360, 256, 192, 144, 112, 80, 56, 40)  # pixels, longest side
EXACT_SIDE = 128  # pictures up to this size are shown as they are, if there is room
FOLDER = "report/thumbnails"


def text_bytes(cards: int) -> int:
    """That one text of a card may take in a page of so many."""
    return max(160, min(MOST_TEXT, int(TEXTS_SHARE * _card_bytes(cards) / TEXTS)))


def pictures(config: RunConfig, run: RunFolder) -> Picture:
    """What makes the cards' pictures, by ``report.thumbnails``. Raises ConfigError when that cannot be done here."""
    limits, section = config.data.images, config.report
    if section.thumbnails == "none":
        return lambda id, image: None
    if section.thumbnails == "inline":
        room = min(MOST_PICTURE, int((1 - TEXTS_SHARE) * _card_bytes(section.gallery) * 3 / 4))  # base64
        return lambda id, image: _inline(image, limits, room)
    if run.local:
        raise ConfigError(
            "report.thumbnails: presigned addresses exist on S3 only and run.output is a local folder; give inline"
        )
    return lambda id, image: _presigned(id, image, config, run)


def origin(cards_addresses: list[str]) -> str:
    """Scheme and host of the addresses that are not inline, for the page's policy; empty when all are."""
    for address in cards_addresses:
        if not address.startswith("data:"):
            parts = urlsplit(address)
            return f"{parts.scheme}://{parts.netloc}"
    return ""


def thumbnail(data: bytes | None, limits: ImageLimits, room: int) -> tuple[str, bytes] | None:
    """(media type, bytes) of a small picture of at most ``room`` bytes; None if there is none that small."""
    if not data:
        return None
    try:
        picture = decode(data, limits)
    except ImageRefused:
        return None
    if max(picture.size) <= EXACT_SIDE:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= room:
            return "image/png", buffer.getvalue()
    for side in SIDES:
        small = picture.copy()
        small.thumbnail((side, side))
        if small.width * small.height > 40 * room:  # WebP takes more than a fifth of a bit per pixel of a photograph
            continue
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=72 if side > 200 else 55, method=4)
        if buffer.tell() <= room:
            return "image/webp", buffer.getvalue()
    return None


def _inline(image: bytes | None, limits: ImageLimits, room: int) -> str | None:
    made = thumbnail(image, limits, room)
    return None if made is None else f"data:{made[0]};base64,{base64.b64encode(made[1]).decode('ascii')}"


def _presigned(id: str, image: bytes | None, config: RunConfig, run: RunFolder) -> str | None:
    made = thumbnail(image, config.data.images, MOST_PICTURE)
    if made is None:
        return None
    place = run.place.child(f"{FOLDER}/{id}.{made[0].rpartition('/')[2]}")
    with storage.storage_errors("write a thumbnail", place.uri):
        storage.write_small(place, made[1], content_type=made[0])
    return s3.presigned(place.path, place.s3, 3600 * config.report.presigned_hours)


def _card_bytes(cards: int) -> float:
    return max(0.0, PAGE_BYTES / max(1, cards) - MARKUP)
