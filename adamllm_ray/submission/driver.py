"""What a job on a cluster runs: a verb of the command line, and one JSON object as the last line of its log.

    python jobs/synthesize.py --config CONFIG --set training.epochs=2       (or CONFIG alone, as on the command line)
    python -m adamllm_ray.submission.driver synthesize CONFIG               the same, where only the package is

The exit code is the command line's (`exits.py`). The last line has it too, for whoever sees no more than the log:
``{"job": "synthesize", "exit_code": 0, "counts": {"synthesize": {"rows_in": 1600, "kept": 1290, ...}}}`` or
``{"job": "synthesize", "exit_code": 75, "error": "..."}``. A driver that is killed (no memory, its node is gone) writes
none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from adamllm_ray.exits import Outcome, outcome

if TYPE_CHECKING:
    from adamllm_ray.data.manifest import Manifest

VERBS = {"ingest": "ingest", "synthesize": "synthesize", "train": "train", "evaluate": "evaluate", "tune": "tune"}
VERBS |= {"pipeline": "run"}
LONGEST_ERROR = 2000  # characters
_COUNTS = ("rows_in", "kept", "rejected", "failed", "seconds")


def run_job(job: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the job named like one of `VERBS` with the arguments of its verb, and end the process."""
    given = sys.argv[1:] if arguments is None else arguments
    done = outcome(lambda: _command_line([VERBS[job], *_positional(given)]))
    sys.stderr.flush()
    print(json.dumps(last_line(job, done)), flush=True)  # ASCII without line breaks, whatever is in it
    sys.exit(done.code)


def last_line(job: str, done: Outcome) -> dict[str, Any]:
    """What the last line of the log says: the exit code, and the counts of the stages that were done or the error."""
    line: dict[str, Any] = {"job": job, "exit_code": done.code}
    if done.error:
        return line | {"error": done.error[:LONGEST_ERROR]}
    manifests: Mapping[str, Manifest] = done.result if isinstance(done.result, Mapping) else {}
    return line | {"counts": {name: _counts(manifest) for name, manifest in manifests.items()}}


def _counts(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in _COUNTS}


def _command_line(arguments: list[str]) -> Any:
    from adamllm_ray.cli import app

    return app(arguments, standalone_mode=False)


def _positional(arguments: Sequence[str]) -> Iterator[str]:
    """The same arguments with ``--config PATH`` as the command line spells it: PATH alone."""
    for argument in arguments:
        if argument.startswith("--config="):
            yield argument.removeprefix("--config=")
        elif argument != "--config":
            yield argument


if __name__ == "__main__":
    run_job(sys.argv[1], sys.argv[2:])
