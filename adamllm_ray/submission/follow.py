"""A RayJob until it ends: a line whenever its state changes, and at the end the exit code that a local run would have.

    code = follow(lambda: api.read_job(namespace, name), print)

KubeRay knows no exit codes, but keeps Ray's message of the last driver, which has its code and the end of its log; the
log's last line is our own (`driver.py`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from adamllm_ray.errors import ClusterError
from adamllm_ray.exits import BUG, DONE, RESUMABLE, WRONG

Manifest = Mapping[str, Any]

PAUSE_S = 5.0
PATIENCE_S = 600.0  # without an answer: an API server that is renewed is away for minutes
ENDED = ("Complete", "Failed", "ValidationFailed")
_CODE = re.compile(r"command failed with exit code (-?\d+)")


def follow(read: Callable[[], Manifest | None], say: Callable[[str], None], pause: float = PAUSE_S) -> int:
    """Ask for the job again and again until it has ended; returns the exit code.

    Raises ClusterError when the API server does not answer for ten minutes.
    """
    shown, answered = "", time.monotonic()
    while True:
        try:
            job = read()
            answered = time.monotonic()
        except ClusterError as error:
            if time.monotonic() - answered > PATIENCE_S:
                raise
            say(f"no answer, asking again: {error}")
            time.sleep(pause)
            continue
        if job is None:
            say("the job is gone: somebody deleted it, or its time was over; the same command continues the run")
            return RESUMABLE
        status = job.get("status") or {}
        line = state(status)
        if line != shown:
            say(f"{time.strftime('%H:%M:%S')}  {line}")
            shown = line
        if status.get("jobDeploymentStatus") in ENDED:
            code, why = verdict(status)
            if why:
                say(why)
            return code
        time.sleep(pause)


def state(status: Manifest) -> str:
    """One line, in the words of `kubectl get rayjobs`; workers and failed starts where there are any."""
    parts = [
        f"JOB STATUS {status.get('jobStatus') or '-'}",
        f"DEPLOYMENT STATUS {status.get('jobDeploymentStatus') or '-'}",
    ]
    cluster = status.get("rayClusterStatus") or {}
    if cluster.get("desiredWorkerReplicas"):
        parts.append(f"workers {cluster.get('availableWorkerReplicas', 0)} of {cluster['desiredWorkerReplicas']}")
    if status.get("failed"):
        parts.append(f"failed starts {status['failed']}")
    return ", ".join(parts)


def verdict(status: Manifest) -> tuple[int, str]:
    """(exit code, what there is to say) of a job that has ended."""
    ended, message = status.get("jobDeploymentStatus"), str(status.get("message") or "")
    if ended == "ValidationFailed":
        return WRONG, f"KubeRay's operator refuses the job: {message}"
    if ended == "Complete" and status.get("jobStatus") == "SUCCEEDED":
        return DONE, ""
    if status.get("jobStatus") == "STOPPED":
        return RESUMABLE, "the job was stopped; the same command continues the run"
    code = exit_code(driver_code(message))
    reason = status.get("reason") or "unknown"
    said = last_error(message) or next(iter(message.splitlines()), "no message")
    return code, f"failed ({reason}): {said}"


def driver_code(message: str) -> int | None:
    """The exit code that Ray's message of a failed job names."""
    found = _CODE.search(message)
    return int(found[1]) if found else None


def exit_code(driver: int | None) -> int:
    """What a driver's exit code means to us. A signal, a lost node or an unknown end: nothing finished is lost."""
    return driver if driver in (DONE, BUG, WRONG) else RESUMABLE


def last_error(log: str) -> str:
    """``error`` of our last line in a log; empty where there is none."""
    for line in reversed(log.splitlines()):
        if line.startswith('{"job": '):
            try:
                return str(json.loads(line).get("error", ""))
            except ValueError:  # cut in the middle
                return ""
    return ""
