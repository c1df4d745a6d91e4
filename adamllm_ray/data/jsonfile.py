"""Records of a JSON list or JSON Lines file, one at a time: the file may be larger than memory."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from adamllm_ray.data.storage import Location
from adamllm_ray.errors import SourceError, foreign

MAX_RECORD_BYTES = 64 << 20
SHOWN_CHARS = 2000  # of a damaged line, kept so that it can be found and mended
_CHUNK_CHARS = 1 << 20
_TAIL_CHARS = 2  # behind a number, which may go on in the next chunk: "1", "1.", "1e+"


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that is not JSON: why, and how it begins."""

    reason: str
    text: str


def json_records(place: Location) -> Iterator[tuple[str, Any]]:
    """(number, record) of every record: line number in JSON Lines, place in the list in a JSON list, both from 1.

    A broken *line* is a record of type Damaged. A broken *list* cannot be continued behind the break.

    Raises:
        SourceError: a JSON list that breaks off; says at which record and line.
        OSError: the file cannot be read.
    """
    with place.fs.open_input_stream(place.path) as raw, _buffered(raw) as stream:
        if stream.peek(3).startswith(codecs.BOM_UTF8):
            stream.read(3)
        if not place.path.endswith((".jsonl", ".ndjson")) and stream.peek(4096)[:4096].lstrip()[:1] == b"[":
            yield from _list_records(stream, place.uri)
        else:
            yield from _line_records(stream)


def _buffered(raw: Any) -> io.BufferedReader:
    return io.BufferedReader(cast("io.RawIOBase", _Readable(raw)), _CHUNK_CHARS)


class _Readable(io.RawIOBase):
    """A pyarrow stream as Python's buffered readers want it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _line_records(stream: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        if not line.endswith(b"\n") and len(line) == MAX_RECORD_BYTES:
            _skip_line(stream)
            yield str(number), Damaged(f"line {number} is longer than {MAX_RECORD_BYTES} bytes", _shown(line))
        elif line.strip():
            yield str(number), _parse_line(line, number)


def _skip_line(stream: io.BufferedReader) -> None:
    while (piece := stream.readline(_CHUNK_CHARS)) and not piece.endswith(b"\n"):
        pass


def _parse_line(line: bytes, number: int) -> Any:
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Damaged(f"line {number} is not UTF-8 (byte {error.start})", _shown(line))
    except json.JSONDecodeError as error:
        return Damaged(f"line {number} is not JSON: {error.msg} at character {error.colno}", _shown(line))
    except (ValueError, RecursionError) as error:
        return Damaged(f"line {number} is not JSON: {error}", _shown(line))


def _shown(line: bytes) -> str:
    return line[: 4 * SHOWN_CHARS].decode("utf-8", "replace")[:SHOWN_CHARS]


def _list_records(stream: io.BufferedReader, where: str) -> Iterator[tuple[str, Any]]:
    window = _Window(io.TextIOWrapper(stream, "utf-8", errors="replace"), where)
    window.expect("[")
    more = window.peek() != "]" or not window.expect("]")
    while more:
        yield str(window.records + 1), window.value()
        more = window.expect(",]") == ","
    window.expect_end()


class _Window:
    """A sliding window over a JSON list: holds about one record, grows for a long one."""

    def __init__(self, text: io.TextIOWrapper, where: str) -> None:
        self._text, self._where = text, where
        self._buffer, self._at, self._line = "", 0, 1
        self.records = 0

    def peek(self) -> str:
        """Next character that is not white space; empty at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(_CHUNK_CHARS):
                return ""

    def expect(self, characters: str) -> str:
        """Take the next character, which must be one of ``characters``."""
        found = self.peek()
        if not found or found not in characters:
            raise self._broken(f"expected {' or '.join(characters)!r}, found {found or 'the end of the file'!r}")
        self._at += 1
        return found

    def expect_end(self) -> None:
        """Only white space may follow."""
        if found := self.peek():
            raise self._broken(f"{found!r} follows the end of the list")

    def value(self) -> Any:
        """Take the next JSON value."""
        self.peek()
        wanted = _CHUNK_CHARS
        while True:
            try:
                begin = self._at
                value, end = _DECODER.raw_decode(self._buffer, begin)
                if end < len(self._buffer) - _TAIL_CHARS or not self._more(_CHUNK_CHARS):
                    self._at += end - begin  # asking for more moves the window, also when there is none
                    self.records += 1
                    return value
            except (ValueError, RecursionError) as error:
                if wanted > MAX_RECORD_BYTES or not self._more(wanted):
                    raise self._broken(str(getattr(error, "msg", error))) from error
                wanted *= 2  # doubling keeps the cost of trying again in proportion to the record

    def _more(self, characters: int) -> bool:
        self._line += self._buffer.count("\n", 0, self._at)
        chunk = self._text.read(characters)
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return bool(chunk)

    def _broken(self, reason: str) -> SourceError:
        line = self._line + self._buffer.count("\n", 0, self._at)
        return SourceError(
            f"{foreign(self._where)} is not a JSON list: {foreign(reason)}, in record {self.records + 1} near line "
            f"{line}. "
            "Mend it, or turn it into JSON Lines, where a broken line costs only itself."
        )


_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and Infinity are no JSON; null is
