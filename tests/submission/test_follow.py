"""States of a RayJob as KubeRay writes them, to lines and an exit code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adamllm_ray.errors import ClusterError
from adamllm_ray.exits import BUG, DONE, RESUMABLE, WRONG
from adamllm_ray.submission import follow as module
from adamllm_ray.submission.follow import exit_code, follow, last_error, verdict

RAN = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n"
LOG = 'synthesize: 40/100 after 61 s\n{"job": "synthesize", "exit_code": 75, "error": "replicas die"}\n'


def failed(code: int, log: str = LOG, **more: Any) -> dict[str, Any]:
    status = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed"}
    return {**status, "message": RAN.format(code) + log, **more}


def answers(*states: dict[str, Any] | Exception | None) -> Callable[[], dict[str, Any] | None]:
    left = list(states)

    def read() -> dict[str, Any] | None:
        state = left.pop(0)
        if isinstance(state, Exception):
            raise state
        return state if state is None else {"status": state}

    return read


def test_a_line_per_state_and_done():
    said: list[str] = []
    workers = {"desiredWorkerReplicas": 4, "availableWorkerReplicas": 1}
    read = answers(
        {},
        {"jobDeploymentStatus": "Initializing"},
        {"jobDeploymentStatus": "Initializing"},
        {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "rayClusterStatus": workers},
        {"jobDeploymentStatus": "Retrying", "failed": 1},
        {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete", "failed": 1},
    )
    assert follow(read, said.append, pause=0) == DONE
    assert [line.partition("  ")[2] for line in said] == [
        "JOB STATUS -, DEPLOYMENT STATUS -",
        "JOB STATUS -, DEPLOYMENT STATUS Initializing",
        "JOB STATUS RUNNING, DEPLOYMENT STATUS Running, workers 1 of 4",
        "JOB STATUS -, DEPLOYMENT STATUS Retrying, failed starts 1",
        "JOB STATUS SUCCEEDED, DEPLOYMENT STATUS Complete, failed starts 1",
    ]


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (failed(75), RESUMABLE, "failed (AppFailed): replicas die"),
        (failed(2, '{"job": "train", "exit_code": 2, "error": "unknown key"}\n'), WRONG, "unknown key"),
        (failed(1, "Traceback"), BUG, "command failed with exit code 1"),
        (failed(137, ""), RESUMABLE, "exit code 137"),
        (failed(130, ""), RESUMABLE, "exit code 130"),
        (failed(-9, ""), RESUMABLE, "exit code -9"),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long"}, RESUMABLE, "too long"),
        ({"jobDeploymentStatus": "Failed"}, RESUMABLE, "failed (unknown): no message"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, RESUMABLE, "stopped"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "no cluster"}, WRONG, "refuses the job: no cluster"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, DONE, ""),
    ],
)
def test_how_a_job_ended(status, code, said):
    found, words = verdict(status)
    assert found == code
    assert said in words
    assert bool(words) == (code != DONE)


def test_another_process_s_exit_code_in_a_log_is_not_the_driver_s():
    lost = "Unexpected error occurred: The actor died. Worker exit type: SYSTEM_ERROR, exit code 1"
    assert verdict({"jobDeploymentStatus": "Failed", "message": lost})[0] == RESUMABLE


def test_a_job_that_is_deleted_can_be_submitted_again():
    said: list[str] = []
    assert follow(answers({"jobDeploymentStatus": "Running"}, None), said.append, pause=0) == RESUMABLE
    assert "is gone" in said[-1]


def test_an_api_server_that_is_away_is_asked_again_for_a_while(monkeypatch):
    said: list[str] = []
    done = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
    assert follow(answers(ClusterError("refused"), done), said.append, pause=0) == DONE
    assert "asking again: refused" in said[0]
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    with pytest.raises(ClusterError, match="refused"):
        follow(answers(ClusterError("refused"), ClusterError("refused")), said.append, pause=0)


def test_the_error_in_a_log():
    assert last_error(LOG) == "replicas die"
    assert last_error(LOG + "something that came after it\n") == "replicas die"
    assert last_error('{"job": "train", "exit_code": 0, "counts": {}}') == ""
    assert last_error('{"job": "train", "exit_code": 75, "err') == ""
    assert last_error("") == ""


def test_codes():
    assert [exit_code(code) for code in (0, 1, 2, 75, 130, 137, -15, None)] == [0, 1, 2, *[75] * 5]
