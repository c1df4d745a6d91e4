"""S3 and everything that speaks its protocol: clients from configuration, listing, and whole objects under a limit.

pyarrow's filesystem carries Parquet and Arrow; boto3 lists, reads whole objects (one request per image, where the
filesystem needs three) and holds the lock. Both take endpoint, region and patience from ``S3Section`` or the
environment, and credentials only from the usual AWS sources.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from typing import Any

from pyarrow import fs as pafs

from adamllm_ray.config import S3Section
from adamllm_ray.errors import ConfigError

CONNECT_TIMEOUT_S = 10
POOL = 32  # connections kept per client
LONGEST_PAUSE_S = 20.0
SLOWEST_BYTES_PER_S = 128 << 10  # of a body, beyond the patience for a request: a store that trickles is a broken one
_PIECE = 1 << 20
_NO_OBJECT = frozenset({"NoSuchKey", "404", "NotFound", "KeyTooLongError", "InvalidObjectState"})  # the last: archived


class TooManyBytes(Exception):
    """An object is larger than the caller allows; not more of it was read than that."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"{size} bytes")


def endpoint_of(s3: S3Section) -> str | None:
    """URL of the server, None for Amazon's own."""
    return s3.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def filesystem(bucket: str, s3: S3Section) -> pafs.FileSystem:
    """pyarrow's view of the store. Raises OSError when the bucket's region cannot be found out."""
    endpoint = endpoint_of(s3)
    region = _region(s3) or ("us-east-1" if endpoint else pafs.resolve_s3_region(bucket))
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        scheme="http" if endpoint and endpoint.startswith("http://") else "https",
        region=region,
        anonymous=s3.anonymous,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=s3.request_timeout_s,
        # not the "standard" one: through Arrow its quota is never refilled, and after a hundred retries in the life of
        # a filesystem it tries nothing again
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=s3.attempts),
    )


def client(s3: S3Section) -> Any:
    """A boto3 client; threads may share it. One per process and set of options."""
    return _client(endpoint_of(s3), _region(s3), s3.anonymous, s3.request_timeout_s, s3.attempts, os.getpid())


def _region(s3: S3Section) -> str | None:
    return s3.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@lru_cache(maxsize=8)
def _client(endpoint: str | None, region: str | None, anonymous: bool, timeout: float, attempts: int, _: int) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    options = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=timeout,
        retries={"mode": "standard", "total_max_attempts": attempts},  # growing pauses with jitter
        max_pool_connections=POOL,
        signature_version=UNSIGNED if anonymous else "s3v4",  # the older one is what presigning falls back to
        s3={"addressing_style": "path"} if endpoint else None,
    )
    session = boto3.session.Session()
    made = session.client("s3", endpoint_url=endpoint, region_name=region or "us-east-1", config=options)
    made.meta.events.register("response-received.s3.HeadBucket", _end_redirects)
    return made


def _end_redirects(response_dict: dict[str, Any] | None, **_: Any) -> None:
    """Raises OSError when a store answers a question for a bucket's region with one more redirect.

    boto3 asks for the region (HeadBucket) whenever it is sent elsewhere without being told one, also in answer to that
    very question: without this it would ask until Python's stack ends, in whatever function that happens to be.
    """
    if response_dict and response_dict["status_code"] in (301, 302, 307):
        headers = {name.lower() for name in response_dict["headers"]}
        if "x-amz-bucket-region" not in headers:
            raise OSError(errno.EIO, "the object store sends every request elsewhere, and does not say in which region")


def presigned(path: str, s3: S3Section, seconds: int) -> str:
    """An address under which anybody can read the object ``bucket/key`` for so long (and for no longer than the

    credentials live that sign it). Raises ConfigError when there are none to sign with.
    """
    bucket, _, key = path.partition("/")
    if s3.anonymous:
        raise ConfigError("run.s3.anonymous: an address cannot be signed without credentials")
    with os_errors(path):
        address: str = client(s3).generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=seconds
        )
    return address


@contextmanager
def os_errors(where: str) -> Iterator[None]:
    """boto3's errors as OSError, so that one ``except`` serves disk and S3: FileNotFoundError, PermissionError, EIO."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in _NO_OBJECT or code == "NoSuchBucket":
            raise FileNotFoundError(errno.ENOENT, f"{code}: {where}") from error
        if status in (401, 403):
            raise PermissionError(errno.EACCES, f"the object store answers {code}: {where}") from error
        raise OSError(errno.EIO, f"the object store answers {code or status}: {where}") from error
    except BotoCoreError as error:  # no credentials, no connection, time out
        raise OSError(errno.EIO, f"{error}") from error


def denied(error: OSError) -> bool:
    """True when a store refused the credentials, in boto3's words or pyarrow's."""
    return isinstance(error, PermissionError) or any(
        word in str(error) for word in ("ACCESS_DENIED", "HTTP status 403")
    )


def split(path: str) -> tuple[str, str]:
    """(bucket, key) of ``bucket/key``."""
    bucket, _, key = path.partition("/")
    return bucket, key


def list_objects(path: str, s3: S3Section) -> Iterator[tuple[str, int]]:
    """(key below ``bucket/prefix``, bytes) of every object, page by page; the empty objects that mark folders left out.

    Raises:
        OSError: see ``os_errors``.
    """
    return ((name, entry["Size"]) for name, entry in _entries(path, s3))


def list_times(path: str, s3: S3Section) -> Iterator[tuple[str, float]]:
    """As `list_objects`: (key, when it was written in seconds since 1970, by the server's clock)."""
    return ((name, entry["LastModified"].timestamp()) for name, entry in _entries(path, s3))


def _entries(path: str, s3: S3Section) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket, key = split(path)
    prefix = f"{key}/" if key else ""
    with os_errors(f"s3://{path}"):
        for page in client(s3).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield entry["Key"][len(prefix) :], entry


def fetch(path: str, s3: S3Section, max_bytes: int) -> bytes:
    """One whole object, of the right length and checksum. One that breaks off, stalls or trickles is asked for again.

    Raises:
        TooManyBytes: the object is larger; its body is not read, or where its length is not told, no further than that.
        OSError: see ``os_errors``.
    """
    bucket, key = split(path)
    with os_errors(f"s3://{path}"):
        for attempt in range(1, s3.attempts + 1):
            reply = client(s3).get_object(Bucket=bucket, Key=key)  # its own retries end where the body starts
            with closing(reply["Body"]) as body:  # entering the body itself would give the unchecked stream
                size = reply.get("ContentLength", 0)  # a server may leave it out
                if size > max_bytes:
                    raise TooManyBytes(size)
                try:
                    return _whole(body, max_bytes, s3.request_timeout_s + size / SLOWEST_BYTES_PER_S)
                except _broken_bodies():
                    if attempt == s3.attempts:
                        raise
            time.sleep(random.uniform(0, min(LONGEST_PAUSE_S, 2.0 ** (attempt - 1))))
    raise AssertionError("the loop returns or raises")


def _whole(body: Any, max_bytes: int, seconds: float) -> bytes:
    """A body to its end, within so many bytes and seconds."""
    body._raw_stream = _Bounded(body._raw_stream, max_bytes, time.monotonic() + seconds)
    data: bytes = body.read()
    return data


class _Bounded:
    """A body's stream under limits, below the checks of length and checksum that boto3 makes of what was read."""

    def __init__(self, raw: Any, max_bytes: int, stop: float) -> None:
        self._raw, self._max_bytes, self._stop = raw, max_bytes, stop

    def read(self, _: int | None = None) -> bytes:
        """All of it, as it arrives: ``read`` would wait for the last byte of a piece, however slowly that comes."""
        from urllib3.exceptions import ReadTimeoutError

        pieces, size = [], 0
        while piece := self._raw.read1(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > self._max_bytes:
                raise TooManyBytes(size)
            if time.monotonic() > self._stop:
                raise ReadTimeoutError(None, "", f"only {size} bytes came")  # type: ignore[arg-type]
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection up."""
        self._raw.close()


def _broken_bodies() -> tuple[type[Exception], ...]:
    from botocore import exceptions

    return (
        exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError,
        exceptions.ReadTimeoutError,
        exceptions.FlexibleChecksumError,
    )
