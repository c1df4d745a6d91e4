"""A job on a Ray cluster that is running: through Ray's job API, with the cluster's token.

    ray = RayCluster("http://ray-head:8265")        token: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as Ray reads them
    job = ray.submit("synthesize", config)
    code = ray.follow(job, print)

The configuration travels as the job's working directory and nothing else does: the package is on the cluster already,
and so are the keys to the object store. What is shown to everybody who sees the cluster (entry point, metadata,
environment) says which stage of which run it is, and no more.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adamllm_ray.config import RunConfig, dump_config
from adamllm_ray.errors import ClusterError, ConfigError
from adamllm_ray.exits import DONE, RESUMABLE
from adamllm_ray.submission.follow import exit_code
from adamllm_ray.submission.render import CONFIG_FILE, new_name

PAUSE_S = 1.0
PATIENCE_S = 120.0  # without an answer, while a job is followed
ENTRYPOINT = "python -m adamllm_ray.submission.driver {job} " + CONFIG_FILE
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # would win over the address that was given


class RayCluster:
    """The job API of one cluster.

    Raises:
        ConfigError: no http address, no token or a wrong one.
        ClusterError: nobody answers there.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"--address {address!r} is not the address of a job API; it looks like http://head:8265")
        self.address = address
        if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        with self._answers(), _without(*_OVERRIDING):
            self._client = JobSubmissionClient(address)

    def submit(self, job: str, config: RunConfig) -> str:
        """Start the job; returns the name by which Ray knows it."""
        name = new_name(config.run.name, job)
        with tempfile.TemporaryDirectory(prefix="adamllm-") as folder, self._answers():
            (Path(folder) / CONFIG_FILE).write_text(dump_config(config), "utf-8")
            made: str = self._client.submit_job(
                entrypoint=ENTRYPOINT.format(job=job),
                submission_id=name,
                runtime_env={"working_dir": folder},
                metadata={"adamllm_job": job, "adamllm_run": config.run.name},
            )
        return made

    def follow(self, name: str, say: Callable[[str], None]) -> int:
        """Pass on the driver's log until the job has ended; returns the exit code that a local run would have.

        Raises ClusterError when the cluster does not answer for two minutes.
        """
        log, answered = _Log(say), time.monotonic()
        while True:
            try:
                with self._answers():
                    asyncio.run(log.pass_on(self._client.tail_job_logs(name)))
                    info = self._client.get_job_info(name)
                answered = time.monotonic()
            except ClusterError:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
            else:
                if info.status.is_terminal():
                    log.end()
                    return _ended(info, say)
            time.sleep(PAUSE_S)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Ray's errors and those of the network as ours."""
        requests, aiohttp = importlib.import_module("requests"), importlib.import_module("aiohttp")
        ray_errors = importlib.import_module("ray.exceptions")
        try:
            yield
        except ray_errors.AuthenticationError as error:
            raise ConfigError(
                f"{self.address}: {str(error).splitlines()[0]}. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file "
                "with it; of a cluster on Kubernetes it is in the Secret of the cluster's name"
            ) from None
        except (requests.RequestException, aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            raise ClusterError(f"{self.address} does not answer as a job API does: {error}") from error


class _Log:
    """Lines of a log that is read from its start again after each lost connection; each line is passed on once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said, self._rest = say, 0, ""

    async def pass_on(self, chunks: Any) -> None:
        """Read until the connection ends."""
        seen, self._rest = 0, ""
        async for chunk in chunks:
            *lines, self._rest = (self._rest + chunk).split("\n")
            for line in lines:
                seen += 1
                if seen > self._said:
                    self._said = seen
                    self._say(line)

    def end(self) -> None:
        """No more will come: the last line may be an unfinished one."""
        if self._rest:
            self._say(self._rest)


def _ended(info: Any, say: Callable[[str], None]) -> int:
    if info.status == "SUCCEEDED":
        return DONE
    if info.status == "STOPPED":
        say("the job was stopped; the same command continues the run")
        return RESUMABLE
    if info.driver_exit_code is None:
        say(f"the driver is lost: {info.message}")
    return exit_code(info.driver_exit_code)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
