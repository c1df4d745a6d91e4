"""Who may work in a run folder: one driver at a time, on disk and on S3.

On disk the kernel keeps the lock (flock) and frees it when its process dies. On S3 it is an object that only one
driver can create (conditional put) and that its owner renews; who finds it unrenewed for ``lease_s`` seconds may take
it over, again by a conditional put, so two takers cannot both succeed. Age is measured between two times of the
server's own clock, never against this machine's. A dead owner on this very machine is recognised at once; of another
machine, or another pod, nobody can tell but by waiting: whoever finds such a lock watches it, is refused as soon as its
owner renews it (a quarter of a lease) and takes it when nobody has for a whole one.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from adamllm_ray.data import s3, storage
from adamllm_ray.errors import RunLocked, StorageError

NAME = ".lock"
RENEWALS = 4  # per lease
LOOKS = 16  # per lease, while another driver's lock is watched


@contextmanager
def hold(place: storage.Location, lease_s: float) -> Iterator[None]:
    """Hold the folder for the length of the block.

    Raises:
        RunLocked: another process holds it (says which one; on S3 after having waited for a sign of life, ``lease_s``
            and a little at most), or took it while this process was cut off for longer than ``lease_s``.
        StorageError: the folder cannot be written, or the store has no conditional writes.
    """
    with _local(place) if place.local else _leased(place, lease_s):
        yield


@contextmanager
def _local(place: storage.Location) -> Iterator[None]:
    with storage.storage_errors("lock the run folder", place.uri):
        storage.make_folder(place)
        handle = (Path(place.path) / NAME).open("a+")  # closed on exec, so workers do not inherit the lock
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise RunLocked(f"{place.uri} is in use by {handle.read().strip() or 'another process'}") from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        yield


@contextmanager
def _leased(place: storage.Location, lease_s: float) -> Iterator[None]:
    lease = _Lease(place, lease_s)
    lease.take()
    stop = threading.Event()
    thread = threading.Thread(target=lease.keep, args=(stop,), name="lock", daemon=True)
    with _stoppable(lease):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if not lease.lost:
                lease.release()
    if lease.lost:
        raise RunLocked(lease.lost)


@contextmanager
def _stoppable(lease: _Lease) -> Iterator[None]:
    """While the block runs, SIGUSR1 raises RunLocked in it: how the renewing thread stops the main one, even asleep."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return

    def stop(*_: object) -> None:
        raise RunLocked(lease.lost)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@dataclass(frozen=True, slots=True)
class _Found:
    """The lock object as the server has it."""

    etag: str
    age_s: float
    owner: dict[str, Any]
    now: float  # the server's clock, seconds since 1970


class _Lease:
    """The lock object of one driver. ``lost`` says why, once it is somebody else's."""

    def __init__(self, place: storage.Location, lease_s: float) -> None:
        self._uri, self._s3, self._lease_s = place.uri, place.s3, lease_s
        self._bucket, key = s3.split(place.path)
        self._key = f"{key}/{NAME}" if key else NAME
        self._etag = ""
        self._renewed = 0.0
        self.lost = ""
        in_main = threading.current_thread() is threading.main_thread()
        self._owner = threading.get_ident() if in_main else None

    def take(self) -> None:
        """Create the object, or take over one that its owner does not renew any more."""
        with storage.storage_errors("lock the run folder", self._uri):
            self._renewed = time.monotonic()
            if self._put(IfNoneMatch="*"):
                return
            found = self._left_behind()
            self._renewed = time.monotonic()
            if not self._put(**({"IfNoneMatch": "*"} if found is None else {"IfMatch": found.etag})):
                raise RunLocked(f"{self._uri} was taken by another process a moment ago")

    def _left_behind(self) -> _Found | None:
        """Watch another driver's lock until it is stale, or gone (None). Raises RunLocked when its owner is alive."""
        first, stop = self._look(), time.monotonic() + self._lease_s * (1 + 1 / RENEWALS) + 1  # the server has seconds
        found = first
        if first is not None and not self._stale(first):
            print(self._waiting(first), file=sys.stderr, flush=True)
        while first is not None and found is not None and not self._stale(found):
            if found.etag != first.etag:
                raise RunLocked(
                    f"{self._uri} is in use by {_named(found)}, which is alive: it has just renewed its lock. Stop it, "
                    "or wait for its end, and run the same command again"
                )
            if time.monotonic() > stop:
                raise RunLocked(self._in_use(found))
            time.sleep(self._lease_s / LOOKS)
            found = self._look()
        return found

    def keep(self, stop: threading.Event) -> None:
        """Renew until told to stop. When the object is lost, stop the main thread: it must not write any more."""
        while not stop.wait(self._lease_s / RENEWALS):
            started = time.monotonic()
            try:
                if not self._put(IfMatch=self._etag):
                    self.lost = f"{self._uri} was taken over by another process, because this one was not heard of"
            except (OSError, StorageError):
                pass  # tried again in a moment, as long as the lease lasts
            else:
                self._renewed = started
            if not self.lost and time.monotonic() - self._renewed > self._lease_s:
                self.lost = f"the lock of {self._uri} could not be renewed for {self._lease_s:g} s"
            if self.lost:
                self.lost += "; run the same command again: it continues where it stopped"
                signal.pthread_kill(self._owner, signal.SIGUSR1) if self._owner is not None else None
                return

    def release(self) -> None:
        """Delete the object; a store that cannot be reached keeps it until it is stale."""
        try:
            found = self._look()
            if found is not None and found.etag == self._etag:
                with s3.os_errors(self._uri):
                    s3.client(self._s3).delete_object(Bucket=self._bucket, Key=self._key)
        except OSError:
            return

    def _put(self, **condition: str) -> bool:
        """Write the object if the condition holds. False: it does not."""
        from botocore.exceptions import ClientError

        body = json.dumps({**_self(), "token": uuid.uuid4().hex, "lease_s": self._lease_s}).encode()
        with s3.os_errors(self._uri):
            try:
                reply = s3.client(self._s3).put_object(Bucket=self._bucket, Key=self._key, Body=body, **condition)
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return self._mine(body)
                if code == "NoSuchKey" and "IfMatch" in condition:
                    return False
                if code == "NotImplemented":
                    raise StorageError(
                        f"{self._uri}: this store has no conditional writes, so it cannot lock a run folder; set "
                        "run.s3_lock to false and make sure that only one driver works there"
                    ) from error
                raise
        self._etag = reply["ETag"]
        return True

    def _mine(self, body: bytes) -> bool:
        """A put whose answer got lost is tried again by boto3 and then refused by our own object."""
        found = s3.client(self._s3).get_object(Bucket=self._bucket, Key=self._key)
        if found["Body"].read() != body:
            return False
        self._etag = found["ETag"]
        return True

    def _look(self) -> _Found | None:
        try:
            with s3.os_errors(self._uri):
                reply = s3.client(self._s3).get_object(Bucket=self._bucket, Key=self._key)
                text = reply["Body"].read()
        except FileNotFoundError:
            return None
        now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        try:
            owner = dict(json.loads(text))
        except (ValueError, TypeError):
            owner = {}
        age = max(0.0, (now - reply["LastModified"]).total_seconds())
        return _Found(reply["ETag"], age, owner, now.timestamp())

    def _stale(self, found: _Found) -> bool:
        return found.age_s > _seconds(found.owner.get("lease_s"), self._lease_s) or _dead(found.owner)

    def _left(self, found: _Found) -> float:
        """Seconds until a lock can be taken."""
        return _seconds(found.owner.get("lease_s"), self._lease_s) - found.age_s + 1

    def _waiting(self, found: _Found) -> str:
        return (
            f"{self._uri} is locked by {_named(found)}, last heard of {found.age_s:.0f} s ago; it may have died: "
            f"waiting for a sign of life, {self._left(found):.0f} s at most"
        )

    def _in_use(self, found: _Found) -> str:
        when = time.strftime("%H:%M:%S UTC", time.gmtime(found.now + self._left(found)))
        return (
            f"{self._uri} is in use by {_named(found)}, which was last heard of {found.age_s:.0f} s ago. If it has "
            f"died, the folder can be taken in {self._left(found):.0f} s, at {when}: run the same command again then"
        )


def _seconds(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 86_400 else default


def _named(found: _Found) -> str:
    return f"process {found.owner.get('pid', '?')} on {found.owner.get('host', '?')}"


def _self() -> dict[str, Any]:
    """Who we are, precisely enough to recognise our own dead on this machine."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "born": _born(os.getpid())}


def _dead(owner: dict[str, Any]) -> bool:
    """True when the owner was a process of this machine (and this container) and is no more."""
    if not owner.get("machine") or owner["machine"] != _machine() or not isinstance(owner.get("pid"), int):
        return False
    return _born(owner["pid"]) != owner.get("born")


def _machine() -> str | None:
    """This boot of this machine and this process namespace; None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None when there is no such process (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None
