"""Progress in a log that is no terminal: one plain line a minute, also while nothing moves."""

from __future__ import annotations

import time

from adamllm_ray import progress


def test_a_line_a_minute_and_no_more(capfd, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.task("ingest", 100) as bar:
        for done in range(1, 61):
            clock[0] += 2.0
            bar.update(done, "1 failed")
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "ingest: 30/100 after 60 s, 0.5/s, 140 s left, 1 failed",
        "ingest: 60/100 after 120 s, 0.5/s, 80 s left, 1 failed",
    ]


def test_a_task_that_does_not_move_is_told_too(capfd, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.5)
    with progress.task("train", 500) as bar:
        time.sleep(1.3)
        bar.update(0)
    told = capfd.readouterr().err.splitlines()
    assert told
    assert all(line.startswith("train: 0/500 after ") for line in told)


def test_short_work_says_nothing(capfd):
    with progress.task("ingest") as bar:
        bar.update(7)
    assert capfd.readouterr().err == ""
