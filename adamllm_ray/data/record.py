"""The one row type: an image-caption pair that gains columns and loses no rows.

``RECORD_SCHEMA`` is what ingest writes; ``SYNTHESIZED_SCHEMA`` is the same plus the columns that synthesis adds.
Image bytes stay encoded exactly as they came (JPEG, PNG, ...), so that no later stage goes back to the source.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

RECORD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # 32 hex characters, see record_id
        pa.field("source", pa.string(), nullable=False),  # which file or table the row came from
        pa.field("key", pa.string(), nullable=False),  # the row's name inside the source
        pa.field("image", pa.binary()),  # encoded bytes; null when the image is missing
        pa.field("width", pa.int32()),  # of the decoded, upright image; null when it could not be decoded
        pa.field("height", pa.int32()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("caption_instruction", pa.string()),  # the source's own request for a caption, if it has one
        pa.field("meta", pa.string()),  # JSON object with whatever else the source knew
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_detail", pa.string()),
    ]
)

# What was found in a response: turns begun, well-formed question-answer pairs, tasks (of which tasks_per_image count).
_FOUND = [pa.field(name, pa.int32()) for name in ("segments", "pairs", "triplets")]

# One task of a response and what became of it, where a row may have several (synthesis.candidates,
# synthesis.retry_temperature, synthesis.tasks_per_image). The columns of the row itself repeat the chosen one.
ATTEMPT = pa.struct(
    [
        pa.field("temperature", pa.float32()),
        pa.field("seed", pa.int64()),
        pa.field("response_ids", pa.list_(pa.int32())),
        pa.field("response", pa.string()),
        pa.field("finish_reason", pa.string()),
        *_FOUND,
        pa.field("instruction", pa.string()),
        pa.field("informative", pa.string()),
        pa.field("precise", pa.string()),
        pa.field("judge_yes", pa.float32()),
        pa.field("judge_no", pa.float32()),
        pa.field("judge_open", pa.float32()),
        pa.field("verdict", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("chosen", pa.bool_()),
    ]
)

TASK = pa.struct([pa.field(name, pa.string()) for name in ("instruction", "informative", "precise")])

SYNTHESIS_FIELDS = [
    pa.field("response_ids", pa.list_(pa.int32())),  # token ids as the synthesizer wrote them
    pa.field("response", pa.string()),  # the same, decoded with special tokens kept
    pa.field("finish_reason", pa.string()),  # "stop" | "length"
    *_FOUND,
    pa.field("instruction", pa.string()),
    pa.field("informative", pa.string()),
    pa.field("precise", pa.string()),
    pa.field("judge_yes", pa.float32()),  # probabilities over the three labels, summing to 1
    pa.field("judge_no", pa.float32()),
    pa.field("judge_open", pa.float32()),
    pa.field("task_verdict", pa.string()),
    pa.field("task_detail", pa.string()),
    pa.field("attempts", pa.list_(ATTEMPT)),  # in the order asked; null where only one was allowed
    pa.field("further", pa.list_(TASK)),  # more kept tasks of the image, the surest first; null but for tasks_per_image
]

SYNTHESIZED_SCHEMA = pa.schema([*RECORD_SCHEMA, *SYNTHESIS_FIELDS])


def record_id(image: bytes | None, caption: str, source_key: str) -> str:
    """Content id of a pair: 32 hex characters (128 bits) of BLAKE2b over image bytes, caption and source key.

    The key is part of it so that exact duplicates stay two rows with two ids (Ray's ledger needs unique ids);
    each part is preceded by its length so that no two different triples concatenate to the same bytes.
    """
    return _digest(image or b"", _utf8(caption), _utf8(source_key))


def content_key(image: bytes | None, caption: str) -> str:
    """Identity of the content alone: equal for exact duplicates (same bytes and caption)."""
    return _digest(image or b"", _utf8(caption))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # lone surrogates occur in scraped captions


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
