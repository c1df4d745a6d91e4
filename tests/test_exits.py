from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import click
import pytest
import typer

from adamllm_ray.errors import ConfigError, RowAccountingError, StorageError
from adamllm_ray.exits import BUG, DONE, INTERRUPTED, RESUMABLE, WRONG, outcome, resumable


def raising(error: BaseException) -> Callable[[], Any]:
    def work() -> Any:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (ConfigError("data.lmit: unknown key"), WRONG, False),
        (click.UsageError("no such option"), WRONG, False),
        (StorageError("the disk is full"), RESUMABLE, False),
        (RowAccountingError("an id twice"), BUG, False),
        (KeyboardInterrupt(), INTERRUPTED, False),
        (typer.Abort(), INTERRUPTED, False),
        (ZeroDivisionError("of ours"), BUG, True),
    ],
)
def test_what_an_exception_becomes(error, code, traceback, capfd):
    done = outcome(raising(error))
    assert done.code == code
    assert (str(getattr(error, "message", error)) or "interrupted") in done.error
    assert ("Traceback" in capfd.readouterr().err) == traceback


def test_what_a_result_becomes():
    assert outcome(lambda: None).code == DONE
    assert outcome(lambda: 3).code == 3  # of typer.Exit
    assert outcome(lambda: {"ingest": 1}).result == {"ingest": 1}


def test_sigterm_is_an_orderly_stop_and_the_old_handler_comes_back(capfd):
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with resumable(None):
            signal.raise_signal(signal.SIGTERM)

    assert outcome(work).code == INTERRUPTED
    assert "the same command continues" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
