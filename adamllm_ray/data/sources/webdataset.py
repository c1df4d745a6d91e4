"""WebDataset: tar shards whose members ``KEY.jpg`` and ``KEY.txt`` (or ``KEY.json``) stand side by side.

A shard is read once, front to back, by member *name*: nothing is extracted, so ``../x``, absolute names and links have
nowhere to lead; nothing is unpickled or evaluated. Members that are not regular files, and suffixes that nobody asked
for (``.pkl``, ``.pt``, ``.cls``), are passed over and counted. Unlike ``tarfile`` and the usual readers, a shard that
breaks off or has a damaged header in the middle is an error and not a short shard.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adamllm_ray.config import DataSection
from adamllm_ray.data import storage
from adamllm_ray.data.sources.pair import RawPair, constant, kind, meta_json, note
from adamllm_ray.data.sources.places import files_digest, parts, source_errors
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError, foreign

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_TEXT_BYTES = 1 << 20  # of a caption or JSON member
MAX_HEADER_BYTES = 64 << 10  # of a long name or a PAX header
MAX_RATIO, FREE_BYTES = 100, 64 << 20  # a compressed shard may unpack to 100 times its size, the first 64 MiB are free
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def pairs(data: DataSection, ignored: Counter[str]) -> Iterator[RawPair]:
    """One pair per sample, shards in the order of their names, samples in the order of the shard."""
    for place, name, size in parts(data, SUFFIXES):
        with _shard_errors(place.uri):
            for sample in _samples(place, size, data, ignored):
                pair = _pair(name, sample)
                if pair is not None:
                    yield pair


def fingerprint(data: DataSection) -> dict[str, Any]:
    """Names, sizes and both ends of the shards."""
    return files_digest(parts(data, SUFFIXES))


@dataclass(slots=True)
class _Sample:
    """What one key gathered; ``suffixes`` tells when the key is used a second time."""

    key: str
    suffixes: set[str] = field(default_factory=set)
    images: int = 0
    image: bytes | None = None
    caption: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    detail: str | None = None


def _pair(source: str, sample: _Sample) -> RawPair | None:
    """None when neither an image nor a caption belongs to the key: then it is not a record."""
    if not sample.images and sample.caption is None and sample.verdict is None:
        return None
    meta = meta_json(sample.meta) if sample.meta else None
    caption = sample.caption or ""
    if sample.verdict is not None:
        return RawPair(source, sample.key, None, caption, None, meta, sample.verdict, sample.detail)
    if sample.image is None:
        detail = "no image beside the caption (data.webdataset.image names the suffixes)"
        return RawPair(source, sample.key, None, caption, None, meta, Verdict.IMAGE_MISSING, detail)
    remark = f"first of {sample.images} images" if sample.images > 1 else None
    return RawPair(source, sample.key, constant(sample.image), caption, None, meta, detail=remark)


def _samples(place: storage.Location, size: int, data: DataSection, ignored: Counter[str]) -> Iterator[_Sample]:
    """Neighbouring members of one key make a sample."""
    sample: _Sample | None = None
    for member, content in _members(place, size):
        if member.type not in _PLAIN:
            note(ignored, f"member: {_KINDS.get(member.type, 'special')}")
            continue
        key, suffix = _split(member.name)
        if sample is None or sample.key != key or suffix in sample.suffixes:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        sample.suffixes.add(suffix)
        if not _take(sample, suffix, member.size, content, data):
            note(ignored, f"suffix: {suffix[:20] or 'none'}")
    if sample is not None:
        yield sample


_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
}


def _split(name: str) -> tuple[str, str]:
    """("a/b", "seg.png") of "a/b.seg.png": WebDataset's rule, the suffix starts at the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _take(sample: _Sample, suffix: str, size: int, content: Any, data: DataSection) -> bool:
    """Read what is asked for into the sample. False: nobody asked for this suffix; it is not read."""
    wanted = data.webdataset
    if suffix in wanted.image:
        sample.images += 1
        if sample.images > 1:
            return True
        if size > data.images.max_bytes:
            sample.verdict = Verdict.IMAGE_TOO_MANY_BYTES
            sample.detail = f"{size} bytes, limit {data.images.max_bytes}"
        else:
            sample.image = content.read()
    elif suffix == wanted.caption and not suffix.endswith("json"):
        sample.caption = content.read(MAX_TEXT_BYTES).decode("utf-8", "replace").strip("\r\n")
    elif suffix.endswith("json") and suffix in (wanted.caption, "json"):
        _take_json(sample, suffix, size, content, data)
    else:
        return False
    return True


def _take_json(sample: _Sample, suffix: str, size: int, content: Any, data: DataSection) -> None:
    """A JSON object is the caption's home when ``webdataset.caption`` says so, and ``meta`` in any case."""
    field_name, is_caption = data.webdataset.caption_field, suffix == data.webdataset.caption
    try:
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"{size} bytes, limit {MAX_TEXT_BYTES}")
        found = json.loads(content.read())
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {kind(found)}")
        if is_caption and not isinstance(found.get(field_name), str):
            raise ValueError(f"no text '{field_name}' (data.webdataset.caption_field)")
    except (ValueError, RecursionError) as error:
        if is_caption:
            sample.verdict, sample.detail = Verdict.ROW_UNREADABLE, f"{sample.key}.{suffix}: {error}"[:500]
        return
    if is_caption:
        sample.caption = found.pop(field_name)
    sample.meta |= found


class _Tar(tarfile.TarFile):
    """A tar read as a stream, of at most ``limit`` bytes. ``complete`` is True behind the mark that ends an archive."""

    complete = False

    def __init__(self, *args: Any, limit: int, beyond: str, **options: Any) -> None:
        self.limit, self.beyond = limit, beyond
        super().__init__(*args, **options)


class _Member(tarfile.TarInfo):
    """Header parsing that says so when the archive is damaged, where ``tarfile`` would end it quietly."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        try:
            member = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.complete = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if tar.complete:
                raise
            raise SourceError("it breaks off: the mark that ends a tar file is missing") from None
        except tarfile.TarError as error:
            raise SourceError(f"damaged header behind byte {tar.offset}: {error}") from error
        except IndexError:  # tarfile's reader of the map of a sparse file, when the shard ends in it
            raise SourceError(f"damaged header behind byte {tar.offset}: a sparse file's map breaks off") from None
        if tar.offset > tar.limit:  # tarfile would look for the next header block by block, for years if need be
            raise SourceError(tar.beyond)
        tar.complete = False
        return member

    def _proc_member(self, tar: Any) -> Any:
        if self.type in _EXTENDED and self.size > MAX_HEADER_BYTES:
            raise SourceError(f"a header of {self.size} bytes, limit {MAX_HEADER_BYTES}")
        return super()._proc_member(tar)  # type: ignore[misc]


_BOMB = f"it unpacks to more than {MAX_RATIO} times its size"
_SHORT = "it breaks off: a header promises more than the shard holds"


class _Unpacked:
    """Bytes of a compressed shard, refused when they are absurdly many."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = gzip.GzipFile(fileobj=stream)
        self._left = limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(_BOMB)
        return data


def _members(place: storage.Location, size: int) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """(header, file object of the content) of every member. The content must be read before the next one is asked for.

    Memory stays flat: tarfile's own list of members is emptied.
    """
    with place.fs.open_input_stream(place.path, compression=None) as raw:
        packed = place.path.endswith("gz")
        limit = FREE_BYTES + MAX_RATIO * size if packed else size
        stream: Any = _Unpacked(raw, limit) if packed else raw
        bounds: dict[str, Any] = {"limit": limit, "beyond": _BOMB if packed else _SHORT}
        with _Tar.open(mode="r|", fileobj=stream, tarinfo=_Member, ignore_zeros=True, **bounds) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                yield member, tar.extractfile(member) if member.type in _PLAIN else None


@contextmanager
def _shard_errors(where: str) -> Iterator[None]:
    """Every way in which a shard can be damaged becomes a SourceError that names it."""
    try:
        with source_errors(where):
            yield
    except SourceError as error:
        shown = foreign(where)
        raise error if shown in str(error) else SourceError(f"cannot read {shown}: {error}") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise SourceError(f"cannot read {foreign(where)}: {type(error).__name__}: {foreign(error)}") from error
