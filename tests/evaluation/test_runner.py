"""The evaluate stage on a tiny model with random weights, in real vLLM under real Ray."""

import contextlib
import io
import json
import shutil
import tempfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamllm_ray.config import EvaluationSection, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, ModelError, SourceError, TooManyFailures
from adamllm_ray.evaluation import answers, runner
from adamllm_ray.evaluation.stores import ANSWER_SCHEMA, AnswerStore, QuestionStore
from adamllm_ray.evaluation.tasks import Question
from adamllm_ray.ray_runtime import start_local

pytestmark = pytest.mark.slow
QUESTIONS = 10


@pytest.fixture(scope="module")
def ray_local():
    import ray

    folder = tempfile.mkdtemp(prefix="ev-")
    start_local(num_cpus=4, _temp_dir=folder, object_store_memory=200 << 20)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _write_task(folder):
    """Ten sound questions, one unreadable line and one truncated image."""
    rows = []
    for i in range(QUESTIONS):
        (folder / f"{i}.png").write_bytes(_png(i))
        answer = ["yes", "no", "left", "right"][i % 4]
        row = {"id": f"q{i}", "image": f"{i}.png", "question": f"<|eot_id|> {i}?", "answer": answer}
        rows.append(json.dumps(row | {"type": "closed" if i % 4 < 2 else "side"}))
    (folder / "cut.png").write_bytes(_png(0)[:300])
    rows.append("{ broken")
    rows.append(json.dumps({"id": "cut", "image": "cut.png", "question": "?", "answer": "yes", "type": "closed"}))
    (folder / "task.jsonl").write_text("\n".join(rows))
    return folder / "task.jsonl"


def _config(folder, model, task, **more):
    engine = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_gib": 0.1}
    evaluation = {"task": str(task), "max_new_tokens": 6, "bootstrap_samples": 200, "engine": engine} | more
    tree = {"run": {"output": str(folder / "run")}, "models": {"base": str(model)}, "evaluation": evaluation}
    return parse_config(tree)


def _train(run, model):
    """A finished train stage whose model is a copy of the base."""
    stage = run.stage("train")
    stage.begin({"x": 1})
    shutil.copytree(model, f"{stage.path}/model")
    stage.finish(rows_in=1, verdicts={"ok": 1}, seconds=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_vlm, ray_local):
    """(config, run, manifest) of one evaluation with two real engines side by side."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = _config(folder, tiny_vlm, _write_task(folder))
    run = RunFolder(config.run.output)
    _train(run, tiny_vlm)
    return config, run, runner.evaluate(config, run)


def _predictions(run):
    return pq.read_table(f"{run.stage('evaluate').data}/predictions.parquet").to_pylist()


def test_rows_in_are_questions_times_models(finished):
    _, run, manifest = finished
    assert manifest.rows_in == 2 * (QUESTIONS + 2)
    assert manifest.verdicts == {"ok": 2 * QUESTIONS, "row_unreadable": 2, "image_truncated": 2}
    assert len(set(run.stage("evaluate").row_ids())) == manifest.rows_in


def test_same_weights_give_the_same_answers_and_no_difference(finished):
    _, run, manifest = finished
    rows = _predictions(run)
    by_model = {
        name: {r["question_id"]: r["prediction"] for r in rows if r["model"] == name} for name in ("base", "adapted")
    }
    assert by_model["base"] == by_model["adapted"]
    assert any(by_model["base"].values())
    scores = manifest.extra["scores"]
    assert scores["models"]["base"]["overall"]["n"] == QUESTIONS
    gain = scores["difference"]["overall"]
    assert (gain["value"], gain["p"]) == (0.0, 1.0)
    assert gain["lo"] < 0 < gain["hi"]  # ten questions cannot show that nothing differs
    assert scores["unusable"] == 2
    assert scores["baselines"]["majority"]["fitted_on"] == "test"
    assert scores["general"] is None
    task = scores["tasks"]["own"]
    assert (task["rows"], task["n"], task["unusable"]) == (QUESTIONS + 2, QUESTIONS, 2)
    assert task["verdicts"] == {"image_truncated": 1, "row_unreadable": 1}


def test_every_answer_says_what_it_took(finished):
    _, run, _ = finished
    for row in _predictions(run):
        if row["verdict"] == "ok":
            assert row["id"] == f"{row['model']}/{row['question_id']}"
            assert (row["task"], row["metric"], row["backend"]) == ("own", "auto", "vllm")
            assert row["finish_reason"] in ("stop", "length")
            assert 1 <= row["output_tokens"] <= 6 < row["prompt_tokens"]
            assert row["latency_s"] > 0
        else:
            assert row["latency_s"] is row["score_strict"] is row["parsed_paper"] is None


def test_finished_stage_is_not_run_again(finished, monkeypatch):
    config, run, manifest = finished
    monkeypatch.setattr(runner, "answer", None)
    assert runner.evaluate(config, run) == manifest


def test_finished_model_is_not_asked_again(finished, tmp_path, monkeypatch):
    """The driver died after the base model was done. A stand-in answers for the engine and notes who is asked."""
    config, run, manifest = finished
    copy = parse_config(
        config.model_dump(mode="json") | {"run": config.run.model_dump() | {"output": str(tmp_path / "run")}}
    )
    shutil.copytree(run.root, tmp_path / "run")
    again = RunFolder(copy.run.output)
    stage = again.stage("evaluate")
    for name in ("manifest.json", "data/predictions.parquet"):
        stage.fs.delete_file(f"{stage.path}/{name}")
    stage.fs.delete_dir(f"{stage.path}/answers/adapted")
    asked = []

    def replay(groups, settled, contestants, config, engine_maker):
        asked.extend(one.name for one in contestants)
        yield "adapted", pq.read_table(f"{run.stage('evaluate').path}/answers/adapted", schema=ANSWER_SCHEMA)

    monkeypatch.setattr(runner, "answer", replay)
    assert runner.evaluate(copy, again).extra["scores"] == manifest.extra["scores"]
    assert asked == ["adapted"]


def test_engine_that_refuses_too_much_stops_the_stage(finished, tmp_path, tiny_vlm, monkeypatch):
    config, run, _ = finished
    table = AnswerStore(run.stage("evaluate"), "base").rows()
    for row in table[:3]:
        row |= {"verdict": "engine_error", "verdict_detail": "out of patience"}
    tables = answers.pa.Table.from_pylist(table, schema=ANSWER_SCHEMA)
    other = _config(tmp_path, tiny_vlm, config.evaluation.task)
    run = RunFolder(other.run.output)
    _train(run, tiny_vlm)
    monkeypatch.setattr(runner, "answer", lambda *_: iter([("base", tables)]))
    with pytest.raises(TooManyFailures, match="out of patience"):
        runner.evaluate(other, run)


@pytest.mark.parametrize("verdict", ["prompt_too_long", "engine_error"])
def test_a_model_that_was_refused_too_much_is_so_at_every_attempt(tmp_path, monkeypatch, verdict):
    """A prompt that is too long is not asked again, so at the second attempt nothing is left to ask of this model."""
    config = _config(tmp_path, "pocket:base", "pocket")
    stage = RunFolder(config.run.output).stage("evaluate")
    stage.begin({"x": 1})
    questions = QuestionStore(stage)
    questions.fill(Question(f"q{i}", b"x", "?", "yes", "t", "closed") for i in range(20))
    contestants = [answers.Contestant(name, "folder") for name in ("base", "adapted")]
    asked = []

    def refuse(groups, settled, waiting, config, maker):
        for one in waiting:
            asked.append(one.name)
            rows = [
                dict.fromkeys(ANSWER_SCHEMA.names[:9], "x") | {"question_id": f"q{i}", "verdict": verdict}
                for i in range(20)
            ]
            yield one.name, answers.pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)

    monkeypatch.setattr(runner, "answer", refuse)
    monkeypatch.setattr(runner, "ray_session", contextlib.nullcontext)
    for _ in range(3):
        stores = {one.name: AnswerStore(stage, one.name) for one in contestants}
        with pytest.raises(TooManyFailures, match="the base model's engine refused 20 of 20"):
            runner._ask(questions, stores, contestants, config, 20, None)
    assert asked == ["base"] * (1 if verdict == "prompt_too_long" else 3)


def test_a_limit_asks_runs_of_other_seeds_the_same_questions(tmp_path):
    rows = [{"id": f"q{i}", "image": "0.png", "question": f"{i}?", "answer": "yes"} for i in range(60)]
    (tmp_path / "0.png").write_bytes(_png(0))
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = []
    for seed in (0, 1):
        config = _config(tmp_path, "pocket:base", tmp_path / "task.jsonl", limit=7)
        config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        stage = RunFolder(str(tmp_path / f"run-{seed}")).stage("evaluate")
        stage.begin({"x": 1})
        store = QuestionStore(stage)
        assert runner._fill(store, config) == 7
        asked.append({one.id for one in store.questions()})
    assert asked[0] == asked[1]


def test_refused_question_is_a_wrong_answer():
    key = Question("q", b"", "?", "yes", "t", "closed")
    scored = {"score_strict": 0.0, "parsed_strict": False, "score_paper": 0.0, "parsed_paper": False}
    assert runner._score_row({"verdict": "engine_error", "prediction": ""}, key) == scored
    unusable = runner._score_row({"verdict": "image_truncated", "prediction": ""}, key)
    assert unusable == dict.fromkeys(scored)


def test_without_a_trained_model(tmp_path, tiny_vlm):
    config = _config(tmp_path, tiny_vlm, _write_task(tmp_path))
    with pytest.raises(ModelError, match="no trained model"):
        runner.evaluate(config, RunFolder(config.run.output))


def test_without_a_task(tmp_path, tiny_vlm):
    config = _config(tmp_path, tiny_vlm, "")
    with pytest.raises(ConfigError, match=r"evaluation\.task is empty"):
        runner.evaluate(config, RunFolder(config.run.output))


def test_task_without_a_usable_question(tmp_path, tiny_vlm):
    (tmp_path / "task.jsonl").write_text("{ broken\n")
    config = _config(tmp_path, tiny_vlm, tmp_path / "task.jsonl")
    run = RunFolder(config.run.output)
    _train(run, tiny_vlm)
    with pytest.raises(SourceError, match="no question that can be asked"):
        runner.evaluate(config, run)


@pytest.mark.parametrize(
    ("capacity", "engine", "rounds"),
    [
        ({"CPU": 4}, {}, [["base", "adapted"]]),
        ({"CPU": 4}, {"cpus_per_replica": 3.0}, [["base"], ["adapted"]]),
        ({"CPU": 8, "GPU": 1}, {"gpus_per_replica": 1}, [["base"], ["adapted"]]),
        ({"CPU": 8, "GPU": 4}, {"gpus_per_replica": 1, "replicas": 2}, [["base", "adapted"]]),
    ],
)
def test_models_run_together_only_when_both_fit(capacity, engine, rounds, monkeypatch):
    monkeypatch.setattr("adamllm_ray.synthesis.pools.cluster_capacity", lambda: capacity)
    section = EvaluationSection.model_validate({"engine": engine})
    contestants = [answers.Contestant(name, "folder") for name in ("base", "adapted")]
    assert [[one.name for one, _ in group] for group in answers._rounds(contestants, section.engine)] == rounds


def test_models_that_never_fit_are_a_configuration_error(monkeypatch):
    monkeypatch.setattr("adamllm_ray.synthesis.pools.cluster_capacity", lambda: {"CPU": 8})
    section = EvaluationSection.model_validate({"engine": {"gpus_per_replica": 1}})
    with pytest.raises(ConfigError, match="GPUs"):
        list(answers._rounds([answers.Contestant("base", "folder")], section.engine))
