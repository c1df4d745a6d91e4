"""A checkpoint of one number of workers becomes one for any number, through DeepSpeed's universal format.

DeepSpeed's shards of weights and optimizer state fit only the number of ranks that wrote them. The converter reads all
of them on one host and writes each parameter with its moments as a file, which any number of ranks can load. It runs
in a process of its own: it takes memory for the whole state and gives it back at its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from adamllm_ray.errors import TrainingError
from adamllm_ray.training.loop import TAG


def to_universal(checkpoint: Path, target: Path) -> None:
    """Convert ``checkpoint/state`` (what `StepLoop.save` wrote, all ranks together) into ``target/state``.

    Raises:
        TrainingError: the checkpoint cannot be converted; holds the converter's last words.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(checkpoint / TAG), "--output_folder", str(target / TAG)]
    done = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise TrainingError(f"the checkpoint in {checkpoint} cannot be converted to another number of workers: {words}")
