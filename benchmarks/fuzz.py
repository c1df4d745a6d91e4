"""Fuzz what reads foreign bytes: triplet parser, judge-label parser, image decoder. Prints one JSON line.

    python -m benchmarks.fuzz [--inputs 100000]

Each gets that many inputs from Hypothesis (tests/strategies.py) and must answer with a result, or with one of our
own verdicts or errors. Anything else is counted as foreign and printed; the exit code is 1 then. About 10 minutes.
fuzz_guided.py looks for coverage instead, with more targets.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adamllm_ray.config import ImageLimits
from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.synthesis.consistency import judgement
from adamllm_ray.synthesis.triplets import TripletParser
from benchmarks.measure import finish
from tests.fuzz.targets import image_outcome, triplet_outcome
from tests.strategies import damaged_images, label_logprobs, responses

LABELS = {"Yes": 11, "No": 12, "Open": 13}


def main() -> None:
    """Fuzz all three and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="per target")
    count = parser.parse_args().inputs
    chat = _chat()
    metrics = {
        "parser": fuzz(_parse(chat), st.tuples(responses(chat), st.sampled_from(["stop", "length"])), count),
        "judge_labels": fuzz(_judge, label_logprobs(list(LABELS.values())), count),
        "decoder": fuzz(_decode, damaged_images(), count),
    }
    finish("fuzz", metrics)
    sys.exit(any(result["foreign_exceptions"] for result in metrics.values()))


def fuzz(target: Callable[[Any], str], inputs: st.SearchStrategy[Any], count: int) -> dict[str, Any]:
    """Call ``target`` with ``count`` inputs; it names the outcome. Returns counts of outcomes and of foreign errors."""
    outcomes: Counter[str] = Counter()
    foreign: Counter[str] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(value: Any) -> None:
        try:
            outcomes[target(value)] += 1
        except Exception as error:
            name = f"{type(error).__name__}: {error}"[:200]
            if name not in foreign:
                print(f"foreign: {name}\n  for {value!r:.500}", file=sys.stderr)
            foreign[name] += 1

    run()
    total = sum(outcomes.values()) + sum(foreign.values())
    return {"inputs": total, "foreign_exceptions": sum(foreign.values()), "outcomes": dict(outcomes.most_common())}


def _chat() -> ChatFormat:
    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.synthesis.actors import load_chat

    return load_chat(resolve_model("pocket:synthesizer"))


def _parse(chat: ChatFormat) -> Callable[[tuple[list[int], str]], str]:
    parser = TripletParser(chat)
    return lambda value: triplet_outcome(parser, *value)


def _judge(logprobs: dict[int, float]) -> str:
    try:
        found = judgement(logprobs, LABELS)
    except ModelError:
        return "none of the labels"
    if (
        not math.isclose(found.yes + found.no + found.open, 1.0, abs_tol=1e-9)
        or min(found.yes, found.no, found.open) < 0
    ):
        raise TypeError(f"not probabilities: {found!r}")
    return str(found.verdict(0.5))


def _decode(data: bytes) -> str:
    return image_outcome(data, ImageLimits())


if __name__ == "__main__":
    main()
