"""ShareGPT, the paper's format: a .json list or .jsonl file beside a folder of images.

Per record ``images: [file]`` (or ``image``) and ``messages: [{role, content}]`` or ``conversations: [{from, value}]``;
the first assistant text is the caption. ``{"image": ..., "caption": ...}`` is understood too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pyarrow import fs as pafs

from adamllm_ray.config import DataSection
from adamllm_ray.data import storage
from adamllm_ray.data.jsonfile import Damaged, json_records
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.sources.pair import RawPair, kind, meta_json
from adamllm_ray.data.sources.places import existing, source_errors
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError, foreign

_USERS, _ASSISTANTS = {"user", "human"}, {"assistant", "gpt", "model"}
_PAIR_FIELDS = {"images", "image", "messages", "conversations", "caption"}


def pairs(data: DataSection, ignored: Counter[str]) -> Iterator[RawPair]:
    """Every record of the file, in its order. Nothing is ignored here."""
    place = _file(data)
    folder = ImageFolder(data.image_folder or place.uri.rpartition("/")[0] or "/", data.images.max_bytes, data.s3)
    source = place.uri.rpartition("/")[2]
    with source_errors(place.uri):
        for key, record in json_records(place):
            yield _pair(source, key, record, folder)


def fingerprint(data: DataSection) -> dict[str, Any]:
    """Name and content of the JSON file. Images are not read for it: ``--force-new`` notices a replaced one."""
    place = _file(data)
    with source_errors(place.uri):
        return {"file": place.uri.rpartition("/")[2], "sha256": storage.sha256(place)}


def _file(data: DataSection) -> storage.Location:
    place = existing(data)
    with source_errors(place.uri):
        if place.fs.get_file_info(place.path).type == pafs.FileType.File:
            return place
        found = place.fs.get_file_info(pafs.FileSelector(place.path))
    names = sorted(info.base_name for info in found if info.is_file and info.extension in ("json", "jsonl", "ndjson"))
    if len(names) != 1:
        listed = foreign(", ".join(names[:5])) or "none"
        raise SourceError(
            f"data.path: {place.uri} must hold exactly one .json or .jsonl file (found: {listed}); name it"
        )
    return place.child(names[0])


def _pair(source: str, key: str, record: Any, folder: ImageFolder) -> RawPair:
    if isinstance(record, Damaged):
        meta = meta_json({"text": record.text})
        return RawPair(source, key, meta=meta, verdict=Verdict.ROW_UNREADABLE, detail=record.reason)
    if not isinstance(record, dict):
        detail = f"expected an object, found {kind(record)}"
        meta = meta_json({"value": record})
        return RawPair(source, key, meta=meta, verdict=Verdict.ROW_UNREADABLE, detail=detail)
    rest = {name: value for name, value in record.items() if name not in _PAIR_FIELDS}
    try:
        image, remark = _image_name(record)
        caption, instruction = _caption(record)
    except _Unreadable as error:
        return RawPair(source, key, meta=meta_json(record), verdict=Verdict.ROW_UNREADABLE, detail=str(error))
    others = meta_json(rest) if rest else None
    return RawPair(source, key, lambda: folder.read(image), caption, instruction, others, detail=remark)


def _image_name(record: dict[str, Any]) -> tuple[str, str | None]:
    """(path of the first image, remark when there are more)."""
    value = record.get("images", record.get("image"))
    images = value if isinstance(value, list) else [value]
    first = images[0] if images else None
    name = first.get("path") if isinstance(first, dict) else first
    if not isinstance(name, str):
        raise _Unreadable("no image: expected 'images': [\"file.jpg\"]")
    return name, f"first of {len(images)} images" if len(images) > 1 else None


def _caption(record: dict[str, Any]) -> tuple[str, str | None]:
    """(first assistant text, the user's request before it)."""
    messages = record.get("messages", record.get("conversations"))
    if messages is None and isinstance(record.get("caption"), str):
        return record["caption"], None
    if not isinstance(messages, list):
        raise _Unreadable("no caption: expected 'messages' or 'conversations' (a list), or 'caption' (a text)")
    request: str | None = None
    for message in messages:
        role, text = _message(message)
        if role in _ASSISTANTS:
            return text, request
        if role in _USERS and request is None:
            request = text.replace("<image>", "").strip() or None
    return "", request


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _Unreadable(f"a message is not an object but {kind(message)}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # [{"type": "image"}, {"type": "text", "text": ...}]
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(role, str) or not isinstance(content, str):
        raise _Unreadable("a message needs a role ('role' or 'from') and a text ('content' or 'value')")
    return role, content


class _Unreadable(ValueError):
    """A single record is not what it should be; becomes the verdict row_unreadable."""
