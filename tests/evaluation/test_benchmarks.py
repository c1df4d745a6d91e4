"""All twelve benchmarks through one evaluation, with real vLLM under real Ray, and what its figures are made of.

The base model is the pocket model, the adapted one a LoRA adapter on top of it that nobody merges. A malformed row of
each benchmark is in every count. A second evaluation mixes the backends: a family that vLLM gave up, and one it has.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.config.evaluation import BENCHMARKS
from adamllm_ray.data.images import decode
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import FingerprintMismatch, ModelError, SourceError
from adamllm_ray.evaluation import runner
from adamllm_ray.evaluation.fallback import TransformersEngine
from adamllm_ray.evaluation.metrics import score
from adamllm_ray.evaluation.tasks import load_questions
from adamllm_ray.models.chat import Turn
from adamllm_ray.models.checkpoint import load_vlm, resolve_model
from adamllm_ray.pocket.standins import tiny_mllama
from adamllm_ray.ray_runtime import start_local
from adamllm_ray.synthesis.actors import load_chat
from adamllm_ray.synthesis.requests import Request, SamplingSpec
from tests.evaluation.tasks import released

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENGINE = {"max_model_len": 512, "max_num_seqs": 16, "kv_cache_gib": 0.1}
TOKENS = 12
GENERAL = 3
COLUMNS = 15  # of the twelve: three have open and closed questions
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    import ray

    folder = tempfile.mkdtemp(prefix="ev-")
    start_local(num_cpus=4, _temp_dir=folder, object_store_memory=200 << 20)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    names = r".*language_model.*\.(q_proj|v_proj)"
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=names, init_lora_weights=False)
    folder = tmp_path_factory.mktemp("lora")
    get_peft_model(load_vlm("pocket:base", "float32")[0], lora).save_pretrained(folder)
    return folder


def own_table(folder: Path, rows: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(rows):
        (folder / f"{i}.png").write_bytes(released.picture(500 + i))
        lines.append({"image": f"{i}.png", "question": f"Is it green? {i}", "answer": "yes", "type": "colour"})
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "q.jsonl"


def configured(folder: Path, models: dict[str, str], **evaluation: Any) -> RunConfig:
    section = {"max_new_tokens": TOKENS, "bootstrap_samples": 200, "engine": ENGINE} | evaluation
    return parse_config({"run": {"output": str(folder / "run")}, "models": models, "evaluation": section})


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, adapter: Path, ray_local: None
) -> tuple[RunConfig, RunFolder, Manifest]:
    folder = tmp_path_factory.mktemp("benchmarks")
    tasks = [{"name": name, "path": path} for name, path in released.write_all(folder).items()]
    general = [{"name": "everyday", "path": str(own_table(folder / "own", GENERAL))}]
    models = {"base": "pocket:base", "adapted": str(adapter)}
    config = configured(folder, models, tasks=tasks, general=general)
    run = RunFolder(config.run.output)
    return config, run, runner.evaluate(config, run)


def predictions(run: RunFolder) -> Rows:
    return pq.read_table(f"{run.stage('evaluate').data}/predictions.parquet").to_pylist()


def test_every_row_of_every_benchmark_is_accounted_for(finished: Any) -> None:
    _, run, manifest = finished
    sound, malformed = len(BENCHMARKS) * released.GOOD + GENERAL, len(BENCHMARKS)
    assert manifest.rows_in == 2 * (sound + malformed)
    assert manifest.verdicts == {"ok": 2 * sound, "row_unreadable": 2 * malformed}
    rows = predictions(run)
    assert len({row["id"] for row in rows}) == manifest.rows_in
    counts = Counter((row["task"], row["verdict"]) for row in rows)
    assert all(counts[name, "ok"] == 2 * released.GOOD and counts[name, "row_unreadable"] == 2 for name in BENCHMARKS)
    assert {row["backend"] for row in rows if row["verdict"] == "ok"} == {"vllm"}
    assert any(row["prediction"] for row in rows)


def test_denominators_and_protocol_stand_beside_each_task(finished: Any) -> None:
    scores = finished[2].extra["scores"]
    assert scores["unusable"] == len(BENCHMARKS)
    for name in BENCHMARKS:
        task = scores["tasks"][name]
        assert (task["rows"], task["n"], task["unusable"]) == (released.GOOD + 1, released.GOOD, 1)
        assert task["verdicts"] == {"row_unreadable": 1}
        assert f"at most {TOKENS} tokens" in task["protocol"]
        assert task["split"] == "test"
        assert not task["general"]
        assert task["models"]["base"]["strict"]["n"] == released.GOOD
        for metrics in task["types"].values():
            assert all(words["strict"] and words["paper"] for words in metrics.values())
    assert scores["tasks"]["everyday"]["general"]


def test_averages_are_over_columns_and_pooled_without_the_general_set(finished: Any) -> None:
    _, run, manifest = finished
    scores, rows = manifest.extra["scores"], predictions(run)
    assert len(scores["types"]) == COLUMNS
    assert scores["general"]["types"] == ["everyday: colour"]
    assert scores["general"]["models"]["base"]["overall"]["n"] == GENERAL
    for mode, part in (("strict", scores), ("paper", scores["paper"])):
        for model in ("base", "adapted"):
            of_domain = [r for r in rows if r["model"] == model and r["task"] != "everyday" and r["verdict"] == "ok"]
            columns: dict[str, list[float]] = {}
            for row in of_domain:
                columns.setdefault(row["type"], []).append(row[f"score_{mode}"])
            means = {name: sum(values) / len(values) for name, values in columns.items()}
            cells = part["models"][model]
            assert {name: cell["accuracy"] for name, cell in cells["types"].items()} == pytest.approx(means)
            assert {name: cell["n"] for name, cell in cells["types"].items()} == {n: len(v) for n, v in columns.items()}
            assert cells["average"]["accuracy"] == pytest.approx(sum(means.values()) / COLUMNS)
            pooled = [row[f"score_{mode}"] for row in of_domain]
            assert cells["overall"]["accuracy"] == pytest.approx(sum(pooled) / len(pooled))
            unread = sum(not row[f"parsed_{mode}"] for row in of_domain)
            assert cells["overall"]["unparsable"] == unread


def test_strict_scores_are_those_one_gives_by_hand(finished: Any) -> None:
    """A second, naive reading of every prediction."""
    config, run, _ = finished
    keys = {one.id: one for one in load_questions(config.evaluation)}
    checked = Counter()
    for row in predictions(run):
        if row["verdict"] == "ok" and row["task"] != "everyday":
            by_hand = score_by_hand(row["prediction"], keys[row["question_id"]])
            assert row["score_strict"] == pytest.approx(by_hand, abs=1e-6), (row, keys[row["question_id"]].choices)
            checked[row["metric"]] += 1
    assert checked.keys() == {
        "yes_no", "recall", "choice", "rouge_l", "names_recall", "names_f1", "numbered_choice", "category",
    }  # fmt: skip


def test_paper_scores_are_those_of_the_paper_s_metrics_and_not_the_strict_ones(finished: Any) -> None:
    config, run, _ = finished
    keys = {one.id: one for one in load_questions(config.evaluation)}
    answered = [row for row in predictions(run) if row["verdict"] == "ok"]
    for row in answered:
        found = score(row["prediction"], keys[row["question_id"]], "paper")
        assert row["score_paper"] == pytest.approx(found.value, abs=1e-6), row
        assert row["parsed_paper"] == found.parsed
    assert any(row["score_paper"] != row["score_strict"] for row in answered)
    assert any(row["parsed_paper"] != row["parsed_strict"] for row in answered)


def score_by_hand(said: str, key: Any) -> float:
    spoken, right = tokens(said), tokens(key.answer)
    if key.metric == "yes_no":
        return float({word for word in spoken if word in ("yes", "no")} == {*right})
    if key.metric == "recall":
        return sum((Counter(spoken) & Counter(right)).values()) / len(right)
    if key.metric == "rouge_l":  # articles and number words as they stand
        spoken, right = (re.findall(r"\w+", text.lower()) for text in (said, key.answer))
        return 2 * longest(spoken, right) / (len(spoken) + len(right)) if spoken else 0.0
    if key.metric == "category" and not key.choices:
        return float(right == spoken) if not right[0].isdigit() else float([w for w in spoken if w.isdigit()] == right)
    names = list(key.choices)
    named = {i for i, name in enumerate(names) if holds(spoken, tokens(name.replace("_", " ").replace("-", " ")))}
    named = {i for i in named if not any(j != i and names[i] in names[j] for j in named)}
    if key.metric in ("names_recall", "names_f1"):
        wanted = {names.index(name) for name in json.loads(key.answer)}
        if not wanted or not named:
            return 0.0
        hits = len(named & wanted)
        return hits / len(wanted) if key.metric == "names_recall" else 2 * hits / (len(named) + len(wanted))
    if key.metric == "choice":
        named |= {"ABCD".index(said.strip())} if said.strip() in set("ABCD") else set()
        return float(named == {"ABCD".index(key.answer)})
    if key.metric == "numbered_choice":
        named |= {int(word) for word in spoken if word.isdigit() and int(word) < len(names)}
    return float(named == {names.index(key.answer)})


def tokens(text: str) -> list[str]:
    numbers = dict(zip(["one", "two", "three", "four", "five"], "12345", strict=True))
    found = re.findall(r"\w+", text.lower())
    return [numbers.get(w, w) for i, w in enumerate(found, 1) if i == len(found) or w not in ("a", "an", "the")]


def holds(text: list[str], name: list[str]) -> bool:
    return any(text[i : i + len(name)] == name for i in range(len(text)))


def longest(x: list[str], y: list[str]) -> int:
    if not x or not y:
        return 0
    if x[-1] == y[-1]:
        return 1 + longest(x[:-1], y[:-1])
    return max(longest(x[:-1], y), longest(x, y[:-1]))


def test_the_adapter_speaks_without_being_merged(finished: Any, adapter: Path) -> None:
    """What vLLM writes with the adapter on top is what transformers writes with it, and not what the base writes."""
    config, run, _ = finished
    rows = {row["id"]: row for row in predictions(run)}
    asked = [one for one in load_questions(config.evaluation) if one.verdict == "ok"][::4]
    folder = resolve_model("pocket:base")
    chat = load_chat(folder)
    settings = config.evaluation.engine.model_copy(update={"lora": str(adapter)})
    engine = TransformersEngine(folder, settings)
    requests = [
        Request(one.id, chat.prompt([Turn("user", one.question, image=True)]), decode(one.image, config.data.images))
        for one in asked
    ]
    found = asyncio.run(engine.generate(requests, SamplingSpec(TOKENS, stop_token_ids=tuple(chat.stop_ids))))
    for one in found:
        row = rows[f"adapted/{one.id}"]
        assert chat.decode(one.token_ids).strip() == row["prediction"]
        assert (one.prompt_tokens, one.generated_tokens) == (row["prompt_tokens"], row["output_tokens"])
    assert any(rows[f"adapted/{one.id}"]["prediction"] != rows[f"base/{one.id}"]["prediction"] for one in asked)


def test_another_adapter_is_another_evaluation(finished: Any, tmp_path: Path, adapter: Path) -> None:
    config, run, manifest = finished
    assert runner.evaluate(config, run) == manifest
    other = shutil.copytree(adapter, tmp_path / "other")
    (other / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text() + " ")
    changed = parse_config(config.model_dump(mode="json") | {"models": {"adapted": str(other)}})
    with pytest.raises(FingerprintMismatch, match="models"):
        runner.evaluate(changed, run)


def test_a_family_without_vllm_beside_one_with_it(tmp_path: Path, tiny_vlm: Path, ray_local: None) -> None:
    from adamllm_ray.pocket.architecture import build_tokenizer
    from tests.conftest import TINY_TEXTS

    mllama = tiny_mllama(build_tokenizer(TINY_TEXTS, 600), tmp_path / "mllama")
    task = [{"name": "ours", "path": str(own_table(tmp_path / "own", 5)), "metric": "recall"}]
    config = configured(tmp_path, {"base": str(mllama), "adapted": str(tiny_vlm)}, tasks=task, backend="auto")
    run = RunFolder(config.run.output)
    manifest = runner.evaluate(config, run)
    assert manifest.verdicts == {"ok": 10}
    rows = predictions(run)
    assert {(row["model"], row["backend"]) for row in rows} == {("base", "transformers"), ("adapted", "vllm")}
    assert all(row["output_tokens"] and row["latency_s"] > 0 for row in rows)


def test_what_is_wrong_is_told_before_anything_starts(tmp_path: Path) -> None:
    tasks = [{"name": "slake", "path": str(tmp_path / "nowhere")}]
    config = configured(tmp_path, {"base": "pocket:base"}, tasks=tasks)
    with pytest.raises(SourceError, match=r"evaluation\.tasks\.0: .*nowhere does not exist"):
        runner.check(config)
    config = configured(tmp_path, {"base": "pocket:base", "adapted": str(tmp_path / "none")}, task="pocket")
    with pytest.raises(ModelError, match="no model folder"):
        runner.evaluate(config, RunFolder(config.run.output))
