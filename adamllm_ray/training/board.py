"""The line between training workers and the driver: every step is heard, in order, and "stop" goes the other way.

    board = start_board()
    with watching(board, hear, stopping):       # driver: hear(reports) about once a second, and once more at the end
        ...
    line = Line(board)                          # worker 0: line.tell(report), line.stop()

After a (re)start worker 0 first tells the steps that its checkpoint has behind it, so that whoever hears them can fill
what an earlier driver did not get to know. Steps can therefore come twice, with the same values.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_S = 1.0

Reports = list[dict[str, Any]]


def start_board() -> Any:
    """A small actor: worker 0 tells it the steps and hears whether to stop; any worker, what no retry can mend."""
    import ray

    class Board:
        def __init__(self) -> None:
            self.unheard: Reports = []
            self.failure = ""
            self.stopping = False

        def steps(self, reports: Reports) -> bool:
            self.unheard += reports
            return self.stopping

        def stop(self) -> None:
            self.stopping = True

        def fail(self, message: str) -> None:
            self.failure = message

        def news(self) -> Reports:
            news, self.unheard = self.unheard, []
            return news

        def failed(self) -> str:
            return self.failure

    return ray.remote(num_cpus=0)(Board).remote()


class Line:
    """Worker 0's line to the driver: tells it each step, hears whether to stop. Does not wait."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None

    def tell(self, reports: Reports) -> None:
        """Send steps; the answer is looked at later."""
        self._answer = self._board.steps.remote(reports)

    def stop(self) -> bool:
        """Whether the driver's last answer that has arrived says stop."""
        import ray

        return self._answer is not None and bool(ray.wait([self._answer], timeout=0)[0]) and ray.get(self._answer)

    def settle(self) -> None:
        """Wait until what was told has arrived: before the worker ends."""
        import ray

        if self._answer is not None:
            ray.get(self._answer)


@contextmanager
def watching(board: Any, hear: Callable[[Reports], None], stopping: threading.Event) -> Iterator[None]:
    """Hand every step that the board is told to ``hear``, in a thread; tell the board when the run is to stop."""
    import ray

    done = threading.Event()

    def watch() -> None:
        over = False
        while not over:
            over = done.wait(POLL_S)  # once more when it is over: the last steps
            if stopping.is_set():
                board.stop.remote()
            reports = ray.get(board.news.remote())
            if reports:
                hear(reports)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60)


def failure(board: Any) -> str:
    """What a worker said that no retry can mend; empty if none did."""
    import ray

    said: str = ray.get(board.failed.remote())
    return said
