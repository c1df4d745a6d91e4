"""How a command ends: what an exit code means, and which one an exception becomes.

    sys.exit(outcome(work).code)

0 done; 2 wrong configuration or input; 75 stopped but resumable with the same command (sysexits' EX_TEMPFAIL); 130
stopped by Ctrl-C or SIGTERM, resumable too; 1 a bug. The command line and the jobs on a cluster end in the same ways.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from adamllm_ray.errors import AdamLLMError

if TYPE_CHECKING:
    from adamllm_ray.data.run import RunFolder

DONE, BUG, WRONG, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the work ended. ``error`` is empty when it was done; ``result`` is what it returned."""

    code: int
    error: str = ""
    result: Any = None


def outcome(work: Callable[[], Any]) -> Outcome:
    """Do the work. Known errors are printed without a traceback, others with it; none leaves here."""
    try:
        result = work()
    except AdamLLMError as error:
        return _said(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return Outcome(INTERRUPTED, "interrupted")
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own usage errors
            return _said(str(error.format_message()), WRONG)
        traceback.print_exc()
        return Outcome(BUG, f"{type(error).__name__}: {error}")
    return Outcome(result if isinstance(result, int) else DONE, result=result)  # click returns the code of typer.Exit


def _said(message: str, code: int) -> Outcome:
    console = Console(stderr=True)
    console.print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True, highlight=False)
    return Outcome(code, message)


@contextmanager
def resumable(folder: RunFolder | None) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into an orderly stop that says how to go on."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt:
        where = f" in {folder.uri}" if folder else ""
        Console(stderr=True).print(
            f"\n[yellow]interrupted.[/yellow] What is finished{where} is kept: the same command continues from here.",
            soft_wrap=True,
        )
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
