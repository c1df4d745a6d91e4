"""Fuzz one target with Atheris, guided by coverage, or replay inputs on it.

    python -m tests.fuzz TARGET [--seconds 60] [--seed 0]     a target of targets.py
    python -m tests.fuzz TARGET FILE...                       what becomes of these inputs; a finding is a traceback

Starts from corpora/TARGET and from what earlier runs found, in .cache/fuzz/TARGET. The first finding ends it with exit
code 77 and is written beside that folder; mend the package, give the input a test of its own, and keep it in corpora/.
`make fuzz SECONDS=60` does this for all targets (benchmarks/fuzz_guided.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.mutators import mended

ROOT = Path(__file__).parents[2]
INSTRUMENTED = {  # whose coverage is followed: what reads the bytes, ours and Python's; the rest would only be slow
    "config": ["adamllm_ray.config", "yaml"],
    "image": ["adamllm_ray.data.images", "PIL"],
    "records": ["adamllm_ray.data.jsonfile", "adamllm_ray.data.sources", "json"],
    "triplet": ["adamllm_ray.synthesis.triplets", "adamllm_ray.synthesis.prompts", "adamllm_ray.models.chat"],
    "webdataset": ["adamllm_ray.data.sources", "tarfile", "gzip"],
}
NAMES = tuple(INSTRUMENTED)
MAX_BYTES, MAX_SECONDS_AN_INPUT, MAX_MEMORY_MIB = 8192, 120, 4096


def main() -> None:
    """Read the arguments; fuzz or replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one every time")
    given = parser.parse_args()
    if given.files:
        replay(given.target, given.files)
    else:
        fuzz(given.target, given.seconds, given.seed)


def replay(name: str, files: list[Path]) -> None:
    """Print the outcome of each file."""
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]()
    for file in files:
        print(f"{file}: {target(file.read_bytes())}")


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        from tests.fuzz.targets import TARGETS

        target = TARGETS[name]()
    found = ROOT / ".cache" / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": seconds,
        "seed": seed,
        "max_len": MAX_BYTES,
        "timeout": MAX_SECONDS_AN_INPUT,
        "rss_limit_mb": MAX_MEMORY_MIB,
        "artifact_prefix": f"{found}-",
        "print_final_stats": 1,
    }

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        changed = atheris.Mutate(data, max_size)
        return mended(name, changed)[:max_size] if seed % 4 else changed

    flags = [f"-{option}={value}" for option, value in options.items()]
    folders = [str(found), str(Path(__file__).parent / "corpora" / name)]
    custom = {"custom_mutator": mutated} if name in ("image", "webdataset") else {}
    atheris.Setup([sys.argv[0], *flags, *folders], target, **custom)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
