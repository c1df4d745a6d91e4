"""A private Ray that does not come up in time, and what is left of an exception of ours that Ray wrapped."""

import os
import signal
import sys
import threading
import time
from subprocess import run

import pytest

from adamllm_ray.errors import AdamLLMError, ModelError, StorageError, TooManyFailures
from adamllm_ray.ray_runtime import own_error
from tests.processes import family_of, words_of

START = """
import psutil
from tests.test_ray_runtime import stop_first_raylet
from adamllm_ray.ray_runtime import prepare_environment, start_local
prepare_environment()
stopped = stop_first_raylet()
start_local(num_cpus=1, object_store_memory=80 << 20)
import ray
gone = stopped[0] not in psutil.pids() or psutil.Process(stopped[0]).status() == "zombie"
print(int(ray.cluster_resources()["CPU"]), gone)
ray.shutdown()
"""


def stop_first_raylet() -> list[int]:
    """SIGSTOP to the first raylet that this process starts. Its pid is in the list once that is done."""
    stopped: list[int] = []

    def look() -> None:
        while not stopped:
            for pid in family_of(os.getpid()):
                try:
                    raylet = words_of(pid)[0].endswith("/raylet")
                except (OSError, IndexError):
                    continue
                if raylet:
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
                    return
            time.sleep(0.01)

    threading.Thread(target=look, daemon=True).start()
    return stopped


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_raylet_that_does_not_come_up_is_started_once_more() -> None:
    done = run([sys.executable, "-c", START], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1", "True"], "what did not come up is not left running"
    assert "starting it once more" in done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "adamllm_ray.errors.TooManyFailures: 3 of 9 rows\n\nThe above exception was ...\nUserCodeException: UDF",
            "3 of 9 rows",
        ),
        ("adamllm_ray.errors.ImageRefused: image_empty\nadamllm_ray.errors.TooManyFailures: all", "all"),
        ("adamllm_ray.errors.FingerprintMismatch: the folder of stage", None),  # not made of a message alone
        ("adamllm_ray.errors.Verdict: x", None),
        ("another.errors.TooManyFailures: x", None),
    ],
)
def test_an_exception_of_which_ray_keeps_the_text(text: str, found: str | None) -> None:
    error = own_error(RuntimeError(text))
    assert (error is None) == (found is None)
    if found is not None:
        assert type(error) is TooManyFailures
        assert str(error) == found
        assert error.exit_code == 75


def test_an_exception_that_is_there_is_taken_itself() -> None:
    ours: AdamLLMError = ModelError("no weights")
    outer = RuntimeError("adamllm_ray.errors.StorageError: text")
    outer.__cause__ = ours
    assert own_error(outer) is ours
    assert isinstance(own_error(RuntimeError("adamllm_ray.errors.StorageError: full")), StorageError)
