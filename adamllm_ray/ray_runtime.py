"""One place that connects to Ray, and the environment that worker processes need.

A job submitted to a cluster finds its address in RAY_ADDRESS; everything else starts a private local Ray that ends
with the process and never touches another Ray on the machine.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adamllm_ray import errors
from adamllm_ray.errors import AdamLLMError

log = logging.getLogger(__name__)

WORKER_ENV = {
    "HF_HUB_OFFLINE": "1",  # nothing is fetched at run time: models are folders we were given
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}

# A machine that is lost at one blow does not say so: until its health checks have failed (15 to 65 s with Ray's
# settings), Ray asks its replicas again and again, and each time uses up one of engine.max_retries. Ray's own pauses
# (0.1 s, doubled, 5 s at most) have the five used up in 8 s; these last two minutes: 4, 8, 16, 32 and 60 s.
PATIENCE_ENV = {
    "RAY_task_actor_unavailable_retry_delay_base_ms": "4000",
    "RAY_task_actor_unavailable_retry_max_delay_ms": "60000",
}

# Where the object store is. Not the keys to it: Ray shows a job's environment to whoever sees the cluster, so the
# nodes have credentials of their own (a service account, a mounted secret); a local Ray inherits ours.
STORE_ENV = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")

START_TRIES = 5
STARTED_LATE = "node timed out during startup"  # ray/_private/node.py
LOCAL_CPUS = 4  # Ray's book-keeping: a resume of Ray Data reserves 2 before the first engine gets any


def prepare_environment() -> None:
    """Set what must be in the environment before ray, torch or vllm are imported. Set values win."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # ours are shown instead
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's +15 starves the workers on a laptop that is in use
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "adamllm_ray" / "torch_extensions"))
    for key, value in {**WORKER_ENV, **PATIENCE_ENV}.items():
        os.environ.setdefault(key, value)


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to RAY_ADDRESS, or start a local Ray for the length of the block. Reuses a connection that exists."""
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    shown = bool(os.environ.get("ADAMLLM_WORKER_LOGS"))  # else their warnings would bury the driver's own lines
    _quieten()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address:
        passed_on = [*WORKER_ENV, *STORE_ENV, "TORCH_EXTENSIONS_DIR", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"]
        env = {key: os.environ[key] for key in passed_on if key in os.environ}
        ray.init(address=address, log_to_driver=shown, runtime_env={"env_vars": env})
    else:  # its processes have our environment; one of a job's own would not fit the workers that Ray starts beforehand
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        start_local(
            num_cpus=max(LOCAL_CPUS, os.cpu_count() or 1),
            object_store_memory=int(os.environ.get("ADAMLLM_OBJECT_STORE_BYTES", 512 << 20)),
            logging_level="warning",
            log_to_driver=shown,
        )
    _put_back(on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def start_local(**options: Any) -> None:
    """A private Ray of this process, with ``options`` of ray.init.

    Ray gives its own node 30 s to come up, a number that nothing sets; on a machine that is busy with other things it
    is tried again, without what the first try has left running.
    """
    import psutil
    import ray

    for left in reversed(range(START_TRIES)):
        before = set(psutil.Process().children(recursive=True))
        try:
            with _native_stderr_closed():  # Ray's core says on it which log level it was given
                ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:
            if STARTED_LATE not in str(error) or not left:
                raise
            log.warning("Ray did not come up in time on this busy machine; starting it once more")
            ray.shutdown()
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    if any("/ray/" in word for word in process.cmdline()):
                        process.kill()


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """What is written to file descriptor 2 is dropped. Python's exceptions are not: they come out afterwards."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _put_back(on_sigterm: Any) -> None:
    """Ray's own handler kills its processes and ends the driver with exit code 1; ours stops in order, with 130."""
    if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
        signal.signal(signal.SIGTERM, on_sigterm)


def _quieten() -> None:
    """Keep Ray's plans and settings out of the terminal; its log files have them. Warnings stay."""
    importlib.import_module("ray.data")  # sets up its logging when it is imported, so before ours
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger("ray.data").handlers:
        handler.addFilter(lambda record: "Progress bars disabled" not in record.getMessage())
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks", module="ray.data")


def links(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it wraps, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = getattr(link, "cause", None) or link.__cause__ or link.__context__


def disk_error(error: BaseException) -> OSError | None:
    """The operating system's error that a Ray task died of. Ray's wrapper is an OSError too, but without the number."""
    return next((link for link in links(error) if isinstance(link, OSError) and link.errno is not None), None)


def own_error(error: BaseException) -> AdamLLMError | None:
    """The exception of ours that Ray wrapped, if there is one.

    Of an actor that did not start, and of what a row function raised, Ray may keep only text: the traceback.
    """
    for link in links(error):
        if isinstance(link, AdamLLMError):
            return link
    for name, message in re.findall(r"\badamllm_ray\.errors\.(\w+): (.+)", str(error)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, AdamLLMError) and "__init__" not in vars(kind):
            return kind(message)  # of those that are made of a message alone
    return None
