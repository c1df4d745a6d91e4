"""What a search has spent, kept in its folder, and its end when that is the budget.

    meter = Meter(place, need={"CPU": 2, "GPU": 0}, hours=10.0)      # a callback and a stopper of Tune in one

GPU-hours are counted, CPU-hours where a trial needs no GPU: for each second that a trial runs, what a trial needs. The
figure survives the driver, to the last few seconds. A trial that would not come to its end within the budget, judged
by those before it, is not begun; at the budget itself everything stops.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.stopper import Stopper

from adamllm_ray.data import storage

METER = "spent.json"
WRITE_S = 3.0


class Meter(Callback, Stopper):
    """See the module docstring.

    Args:
        place: folder that the figure is kept in.
        need: CPUs and GPUs of a trial.
        hours: the budget; None for none.
    """

    def __init__(self, place: storage.Location, need: Mapping[str, float], hours: float | None) -> None:
        self._place, self._hours = place.child(METER), hours
        self._size = need["GPU"] or need["CPU"]
        self._books: dict[str, Any] = {}
        self._at = self._written = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_books": {}, "_at": 0.0, "_written": 0.0}  # another driver has another clock

    def stop_all(self) -> bool:
        """Whether the budget is spent."""
        return self._hours is not None and self._load()["hours"] >= self._hours

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped from here."""
        return False

    def room(self, running: int) -> bool:
        """Whether one trial more beside ``running`` others is likely to come to its end."""
        books = read(self._place)
        if self._hours is None or not books["ended"]:
            return True
        each = books["of_ended"] / books["ended"]
        return bool(books["hours"] + (running + 1) * each <= self._hours + each / 2)  # those running are half done

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune's driver calls this many times a second."""
        now, books = time.monotonic(), self._load()
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        books["hours"] += len(running) * self._size * (now - (self._at or now)) / 3600
        self._at = now
        if now - self._written > WRITE_S:
            self._save()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count it, and tell."""
        books, result = self._load(), trial.last_result or {}
        books["ended"] += 1
        books["of_ended"] += self._size * result.get("time_total_s", 0.0) / 3600
        self._save()
        if "score" in result:
            how = "" if result.get("final") else f", stopped after {result['examples']} examples"
            _say(f"tune: trial {books['ended']}: score {result['score']:.4f}{how}; {books['hours']:.2f} hours in all")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell that it has failed for good."""
        _say(f"tune: trial {trial.trial_id} failed: {last_words(trial)}")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Write down the rest."""
        self._save()

    def _load(self) -> dict[str, Any]:
        if not self._books:
            self._books = read(self._place)
        return self._books

    def _save(self) -> None:
        self._written = time.monotonic()
        storage.write_small(self._place, json.dumps(self._load()).encode())


def read(place: storage.Location) -> dict[str, Any]:
    """{hours, ended, of_ended} of the search, as far as it was written."""
    books: dict[str, Any] = json.loads(storage.read_small(place) or b'{"hours": 0.0, "ended": 0, "of_ended": 0.0}')
    return books


def last_words(trial: Trial) -> str:
    """The last line of what a trial died of."""
    lines = [line for line in str(trial.get_error() or "").strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
