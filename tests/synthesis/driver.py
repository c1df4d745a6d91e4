"""A whole driver process for the kill tests: the synthesize stage as `adamllm synthesize` runs it, on the fake engine.

    python -m tests.synthesis.driver SPEC.json

SPEC holds {"output", "vlm", "judge", "maker": FakeMaker's fields, "synthesis": changed settings}. Prints the
manifest's verdicts as JSON. Exit codes are those of the command line.

To die at an exact point, set ADAMLLM_TEST_STOP="POINT N MARKER": as soon as N blocks are committed, whoever comes to
POINT creates the file MARKER and waits for ever. POINT is "pending" (the ledger entry is announced), "data" (the rows
are written), "commit" (the entry is renamed) or "manifest" (everything is done but the manifest). The first three are
in Ray's write tasks, into which `install_stop` gets as a worker process setup hook.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP = "ADAMLLM_TEST_STOP"


def main(spec: dict[str, Any]) -> None:
    """Run the stage once."""
    import ray

    from adamllm_ray.data.run import RunFolder
    from adamllm_ray.exits import resumable
    from adamllm_ray.ray_runtime import ray_session
    from adamllm_ray.synthesis.pipeline import synthesize
    from tests.synthesis.fakes import FakeMaker, config_for

    if os.environ.get(STOP):
        ray.init = _with_hook(ray.init)
        _stop_at_manifest()
    run = RunFolder(spec["output"])
    config = config_for(run.uri, Path(spec["vlm"]), Path(spec["judge"]), **spec["synthesis"])
    with resumable(run), run.lock(), ray_session():  # in the order of `adamllm run`
        manifest = synthesize(config, run, engine_maker=FakeMaker(**spec["maker"]))
    print(json.dumps(manifest.verdicts))


def _with_hook(init: Callable[..., Any]) -> Callable[..., Any]:
    def hooked(**settings: Any) -> Any:
        hook = {"worker_process_setup_hook": "tests.synthesis.driver.install_stop"}
        return init(**settings | {"runtime_env": settings.get("runtime_env", {}) | hook})

    return hooked


def install_stop() -> None:
    """In each worker process: stop where ADAMLLM_TEST_STOP says."""
    point, blocks, marker = os.environ[STOP].split()
    if point == "manifest":
        return
    from ray.data.checkpoint.checkpoint_writer import BatchBasedCheckpointWriter as Writer

    write_pending, commit = Writer.write_pending_checkpoint, Writer.commit_checkpoint

    def stop(here: str, writer: Any) -> None:
        names = [path.name for path in Path(writer.checkpoint_path_unwrapped).iterdir()]
        if here == point and sum(".pending" not in name for name in names) >= int(blocks):
            _stop(marker)

    def write_and_stop(self: Any, *arguments: Any, **named: Any) -> Any:
        pending = write_pending(self, *arguments, **named)
        stop("pending", self)
        return pending

    def stop_and_commit(self: Any, pending: Any) -> None:
        stop("data", self)
        commit(self, pending)
        stop("commit", self)

    Writer.write_pending_checkpoint, Writer.commit_checkpoint = write_and_stop, stop_and_commit


def _stop_at_manifest() -> None:
    from adamllm_ray.data.run import StageFolder

    point, _, marker = os.environ[STOP].split()
    if point == "manifest":
        StageFolder.finish = lambda *_, **__: _stop(marker)  # type: ignore[assignment]


def _stop(marker: str) -> None:
    Path(marker).touch()
    time.sleep(3600)


if __name__ == "__main__":
    from adamllm_ray.errors import AdamLLMError

    try:
        main(json.loads(Path(sys.argv[1]).read_text()))
    except AdamLLMError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
