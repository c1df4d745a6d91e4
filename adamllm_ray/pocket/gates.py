"""What the pocket models can do, measured: the figures that a build prints and the quickstart repeats.

Everything runs in vLLM with the prompts, the parser and the judge of the real pipeline; only the questions are made.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from adamllm_ray.config import EngineSection
from adamllm_ray.evaluation.metrics import score
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.pocket.curriculum import Curriculum, held_out_questions
from adamllm_ray.pocket.domain import Pair, check_triplet, facts_from, training_pairs
from adamllm_ray.synthesis.consistency import judge_prompt, judgement, label_ids
from adamllm_ray.synthesis.engine import Completion, Engine, Request, SamplingSpec
from adamllm_ray.synthesis.prompts import synthesis_prompt
from adamllm_ray.synthesis.triplets import Triplet, TripletParser

ENGINE = EngineSection(max_model_len=512, max_num_seqs=64, kv_cache_gib=0.5, cpus_per_replica=2)
JUDGE = Path(__file__).parent / "weights" / "judge"

# what a build must reach to be shipped: (name, figure, at least; or at most, where the name says so)
GATES: tuple[tuple[str, Callable[[dict[str, Any]], float], float], ...] = (
    ("base: right on general questions", lambda f: f["base"]["accuracy"], 0.80),
    ("synthesizer: responses that parse", lambda f: f["synthesizer"]["parsed"], 0.80),
    ("synthesizer: right in both answers", lambda f: f["synthesizer"]["right"], 0.60),
    ("synthesizer: most common opening, at most", lambda f: f["synthesizer"]["most_common_type"], 0.40),
    ("judge: Yes against No", lambda f: f["judge"]["yes_no_accuracy"], 0.90),
    ("filter: gain in the right share", lambda f: f["filter"]["right_after"] - f["filter"]["right_before"], 0.15),
)


def gates(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> figure, the limit, and whether it holds."""
    found = {}
    for name, figure, limit in GATES:
        value = round(figure(figures), 3)
        holds = value <= limit if name.endswith("at most") else value >= limit
        found[name] = {"figure": value, "gate": limit, "holds": holds}
    return found


def measure(models: dict[str, Path]) -> dict[str, Any]:
    """Figures of base, synthesizer and judge, and of the filter on the synthesizer's own tasks."""
    synthesizer, triplets = _synthesize(models["synthesizer"], 300)
    return {
        "base": measure_base(models["base"], 150),
        "synthesizer": synthesizer,
        **_measure_judge(models["judge"], triplets, 500),
    }


def measure_base(folder: Path, pictures: int) -> dict[str, Any]:
    """Accuracy on questions about general pictures that were never trained on, per question type."""
    asked = held_out_questions(pictures)
    chat = ChatFormat(_processor(folder).tokenizer)
    requests = [
        Request(str(number), chat.prompt([Turn("user", question.text, image=True)]), _image(data))
        for number, (data, question, _) in enumerate(asked)
    ]
    answers = _complete(folder, requests, SamplingSpec(48, stop_token_ids=tuple(chat.stop_ids)), images=True)
    hits: dict[str, list[float]] = defaultdict(list)
    for (_, question, kind), answer in zip(asked, answers, strict=True):
        row = SimpleNamespace(id="", answer=question.precise, kind=question.kind, choices=None, metric="auto")
        hit = score(chat.decode(answer.token_ids), row, "strict").value
        hits[kind].append(hit)
        hits["all"].append(hit)
    return {"accuracy": _mean(hits["all"]), "questions": len(asked), "types": {k: _mean(v) for k, v in hits.items()}}


def measure_synthesizer(folder: Path, pairs: int = 300) -> dict[str, Any]:
    """Parsed share, right share and spread of question types on captions of the satellite domain."""
    return _synthesize(folder, pairs)[0]


def judged_tasks(folder: Path, count: int, *, noise: bool = False) -> dict[str, list[bool]]:
    """For each of ``count`` chips whether its task could be read, the judge kept it, and both answers are right.

    ``noise``: the images are random pixels and the captions as they were; right is against the caption's facts then.
    """
    _, triplets = _synthesize(folder, count, noise=noise)
    tokenizer = _processor(JUDGE)
    labels = label_ids(tokenizer)
    prompts = [judge_prompt(tokenizer, t.question, t.informative, t.precise, few_shot=False) for _, t in triplets]
    spec = SamplingSpec(1, allowed_token_ids=tuple(labels.values()), logprobs=len(labels))
    requests = [Request(str(number), ids) for number, ids in enumerate(prompts)]
    answers = _complete(JUDGE, requests, spec, images=False) if requests else []
    kept = [judgement(answer.logprobs, labels).yes >= 0.5 for answer in answers]
    missing = [False] * (count - len(triplets))
    right = [_right(*one) for one in triplets]
    return {"parsed": [True] * len(triplets) + missing, "kept": kept + missing, "right": right + missing}


def _synthesize(folder: Path, count: int, *, noise: bool = False) -> tuple[dict[str, Any], list[tuple[Pair, Triplet]]]:
    pairs = list(training_pairs(count))
    chat = ChatFormat(_processor(folder).tokenizer)
    parser = TripletParser(chat)
    requests = [
        Request(pair.key, synthesis_prompt(chat, pair.caption), _image(pair.image_bytes, noise)) for pair in pairs
    ]
    written = _complete(folder, requests, SamplingSpec(128, stop_token_ids=(parser.end_id,)), images=True)
    triplets = []
    for pair, completion in zip(pairs, written, strict=True):
        parsed = parser.parse(completion.token_ids, completion.finish_reason)
        if isinstance(parsed, Triplet):
            triplets.append((pair, parsed))
    right = [_right(pair, triplet) for pair, triplet in triplets]
    types = Counter(" ".join(triplet.question.split()[:2]) for _, triplet in triplets)
    return {
        "pairs": len(pairs),
        "parsed": round(len(triplets) / len(pairs), 3),
        "right": round(sum(right) / len(pairs), 3),
        "most_common_type": round(max(types.values(), default=0) / max(1, len(triplets)), 3),
        "questions": len({triplet.question for _, triplet in triplets}),
    }, triplets


def _measure_judge(folder: Path, triplets: list[tuple[Pair, Triplet]], cases: int) -> dict[str, Any]:
    """Accuracy on Yes / No / Open cases in the domain's words, and what the filter does to the right share."""
    tokenizer = _processor(folder)
    labels = label_ids(tokenizer)
    school, random = Curriculum(ChatFormat(tokenizer)), Random("judge-gate")
    told = [facts for pair in training_pairs(cases) if (facts := facts_from(pair.meta))]
    made = [school.judge_case(random, facts) for facts in told]
    prompts = [ids for ids, _ in made]
    prompts += [judge_prompt(tokenizer, t.question, t.informative, t.precise, few_shot=False) for _, t in triplets]
    spec = SamplingSpec(1, allowed_token_ids=tuple(labels.values()), logprobs=len(labels))
    answers = _complete(folder, [Request(str(n), ids) for n, ids in enumerate(prompts)], spec, images=False)
    said = [judgement(answer.logprobs, labels) for answer in answers]
    guessed = [max(("Yes", one.yes), ("No", one.no), ("Open", one.open), key=lambda item: item[1])[0] for one in said]
    decided = [(label, guess) for (_, label), guess in zip(made, guessed, strict=False) if label != "Open"]
    kept = [pair_triplet for pair_triplet, one in zip(triplets, said[len(made) :], strict=True) if one.yes >= 0.5]
    return {
        "judge": {"cases": len(decided), "yes_no_accuracy": _mean([label == guess for label, guess in decided])},
        "filter": {
            "tasks": len(triplets),
            "kept": len(kept),
            "right_before": _mean([_right(*one) for one in triplets]),
            "right_after": _mean([_right(*one) for one in kept]),
        },
    }


def _right(pair: Pair, triplet: Triplet) -> bool:
    return check_triplet(pair.meta, triplet.question, triplet.informative, triplet.precise) is True


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0


def _processor(folder: Path) -> Any:
    from transformers import AutoProcessor, AutoTokenizer

    kind = AutoProcessor if (folder / "processor_config.json").exists() else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


def _image(data: bytes, noise: bool = False) -> Any:
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if not noise:
        return picture
    return Image.frombytes("RGB", picture.size, Random(data).randbytes(3 * picture.width * picture.height))


def _complete(folder: Path, requests: list[Request], spec: SamplingSpec, *, images: bool) -> list[Completion]:
    async def ask() -> list[Completion]:
        engine = Engine(str(folder), ENGINE, images=images)
        try:
            return await engine.generate(requests, spec)
        finally:
            engine.close()

    return asyncio.run(ask())
