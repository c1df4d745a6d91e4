import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.quality.contamination import (
    FOUND,
    SUMMARY,
    EvaluationSets,
    contaminated_ids,
    find_contamination,
    look_at,
    read_summary,
)
from adamllm_ray.training.catalog import REPLAY_SCHEMA, replay_row
from tests.quality.conftest import finish, picture, task


def _questions(path, rows):
    table = [{"id": f"q{n}", "image": image, "question": text, "answer": "x"} for n, (image, text) in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(table), path)
    return str(path)


@pytest.fixture
def leaky(config, run, tmp_path):
    """Ten records; of the two evaluation sets one holds copies of some of them."""
    rows = [task(i) for i in range(8)]
    rows.append(task(8, task_verdict="judged_open"))
    rows.append(task(9, verdict="image_truncated", task_verdict="not_synthesized"))
    finish(run, "synthesize", rows, {"kept": 8, "judged_open": 1, "not_synthesized": 1})
    domain = _questions(
        tmp_path / "domain.parquet",
        [
            (rows[0]["image"], "Is it night?"),  # record 0: the image
            (
                picture(1, "JPEG", quality=80),
                rows[1]["instruction"].upper(),
            ),  # record 1: nearly the image, the question
            (picture(2, "PNG", side=64), "Is it day?"),  # record 2: nearly the image
            (picture(100), "How many waves are in the picture 3?"),  # record 3: nearly the question
            (rows[8]["image"], rows[8]["instruction"]),  # record 8: the image; its task is not kept
            (rows[9]["image"], "Is it dusk?"),  # record 9 cannot train
        ],
    )
    other = _questions(tmp_path / "other.parquet", [(picture(200), rows[4]["instruction"]), (b"no image", "Is it?")])
    settings = config.model_dump(mode="json")
    settings["evaluation"]["tasks"] = [{"name": "domain", "path": domain, "limit": 1}]
    settings["contamination"] = {
        "against": [{"name": "other", "path": other}],
        "near_questions": 0.7,
        "exclude": ["image", "near_image"],
    }
    return parse_config(settings)


def _number(id):
    return int(id, 16)


def test_images_and_questions_are_found_again(leaky, run):
    summary = find_contamination(leaky, run, EvaluationSets.load(leaky))
    everything = pq.read_table(f"{run.root}/{FOUND}").to_pylist()
    rows = {_number(row["id"]): row for row in everything if row["set"] == "domain"}
    images = {n: (row["image_match"], row["image_question"]) for n, row in rows.items() if row["image_match"]}
    assert images == {0: ("image", "q0"), 1: ("near_image", "q1"), 2: ("near_image", "q2"), 8: ("image", "q4")}
    questions = {n: row["question_match"] for n, row in rows.items() if row["question_match"]}
    assert questions[1] == "question"
    assert [
        _number(row["id"]) for row in everything if (row["set"], row["question_match"]) == ("other", "question")
    ] == [4]
    assert questions[3] == "near_question"
    assert 8 not in questions
    assert summary["rows"] == 9
    assert summary["counts"]["pair"] == 1  # record 1: others share an image and, elsewhere, a question
    assert [n for n, row in rows.items() if row["pair"]] == [1]
    domain, other = summary["sets"]["domain"], summary["sets"]["other"]
    assert (domain["questions"], domain["images"], domain["counts"]["near_image"]) == (6, 6, 2)
    assert other["counts"]["question"] == 1
    assert [row["image_match"] for row in summary["examples"]] == ["image", "near_image", "near_image", "image"]


def test_kinds_are_chosen(leaky, run):
    find_contamination(leaky, run, EvaluationSets.load(leaky))
    for kinds, expected in [
        (["image"], {0, 8}),
        (["near_image"], {1, 2}),
        (["image", "question"], {0, 1, 4, 8}),
        (["pair"], {1}),
    ]:
        assert {_number(id) for id in contaminated_ids(run, kinds)[""].to_pylist()} == expected
    assert contaminated_ids(run, []) == {}


def test_it_is_done_once_and_again_when_something_changed(leaky, run, monkeypatch):
    sets = EvaluationSets.load(leaky)
    first = find_contamination(leaky, run, sets)
    monkeypatch.setattr("adamllm_ray.quality.contamination._write", None)
    assert find_contamination(leaky, run, EvaluationSets.load(leaky)) == first == read_summary(run)
    monkeypatch.undo()
    fewer = leaky.model_copy(update={"contamination": leaky.contamination.model_copy(update={"near_images": None})})
    second = find_contamination(fewer, run, EvaluationSets.load(fewer))
    assert "near_image" not in second["counts"]
    assert json.loads(run.read(SUMMARY)) == second


def test_replay_sources_are_compared_as_well(leaky, run):
    turns = [("user", "Is it night?"), ("assistant", "no")]
    rows = [replay_row("a" * 32, picture(0), turns, 96, 96), replay_row("b" * 32, None, [("user", "Why?")])]
    folder = run.stage("train").place.child("replay")
    run.fs.create_dir(folder.path, recursive=True)
    pq.write_table(pa.Table.from_pylist(rows, REPLAY_SCHEMA), f"{folder.path}/general.parquet")
    find_contamination(leaky, run, EvaluationSets.load(leaky))
    assert contaminated_ids(run, ["image"])["general"].to_pylist() == ["a" * 32]


def test_every_task_that_may_train_is_compared(config, run, tmp_path):
    """A second task of an image, and, under a threshold of the mixture, one that the judge's own rule did not keep."""
    more = {"instruction": "Is it a boat?", "informative": "It is one.", "precise": "yes"}
    rows = [task(0, further=[more]), task(1, task_verdict="judged_open", instruction="Is it day?")]
    finish(run, "synthesize", rows, {"kept": 1, "judged_open": 1})
    path = _questions(tmp_path / "set.parquet", [(picture(100), "Is it a boat?"), (picture(101), "Is it day?")])
    for threshold, expected in ((None, [0]), (0.2, [0, 1])):
        tree = config.model_dump(mode="json")
        tree["mixture"]["threshold"], tree["contamination"] = threshold, {"against": [{"name": "set", "path": path}]}
        settings = parse_config(tree)
        assert find_contamination(settings, run, EvaluationSets.load(settings))["counts"]["question"] == len(expected)
        assert sorted(map(_number, contaminated_ids(run, ["question"])[""].to_pylist())) == expected


def test_exact_only(leaky):
    section = leaky.contamination.model_copy(update={"near_images": None, "near_questions": None})
    sets = EvaluationSets.load(leaky.model_copy(update={"contamination": section}))
    seen = look_at(picture(2, "PNG"), leaky.data.images, perceptual=False)
    assert sets.match(seen, ["How many waves are in picture 3?"]) == []
    assert [found["question_match"] for found in sets.match(None, ["is it NIGHT"])] == ["question"]


@pytest.fixture
def overlapping(config, run, tmp_path):
    """Two sets with the same images; each asks its own about the first, both the same about the second."""
    rows = [task(0, instruction="Which organ is it?"), task(1, instruction="Is it normal?"), task(2)]
    finish(run, "synthesize", rows, {"kept": 3})
    first = _questions(tmp_path / "first.parquet", [(picture(0), "Is there a mass?"), (picture(1), "Is it normal?")])
    second = _questions(
        tmp_path / "second.parquet",
        [(picture(0), "Which organ is it?"), (picture(1), "Is it normal?"), (picture(2, "PNG", side=64), "Is it day?")],
    )
    third = _questions(tmp_path / "third.parquet", [(picture(2), "How many are there?")])
    settings = config.model_dump(mode="json")
    sets = {"first": first, "second": second, "third": third}
    settings["evaluation"]["tasks"] = [{"name": name, "path": path} for name, path in sets.items()]
    return parse_config(settings)


def test_what_is_in_several_sets_is_charged_to_each(overlapping, run):
    summary = find_contamination(overlapping, run, EvaluationSets.load(overlapping))
    counts = {name: found["counts"] for name, found in summary["sets"].items()}
    assert counts == {
        "first": {"image": 2, "question": 1, "pair": 1},
        "second": {"image": 2, "near_image": 1, "question": 2, "pair": 2},
        "third": {"image": 1},
    }
    assert summary["counts"] == {"any": 3, "image": 3, "near_image": 1, "question": 2, "pair": 2}  # records, once each
    table = pq.read_table(f"{run.root}/{FOUND}").to_pylist()
    pairs = {(_number(row["id"]), row["set"]) for row in table if row["pair"]}
    assert pairs == {(0, "second"), (1, "first"), (1, "second")}
    for kinds, expected in [(["pair"], [0, 1]), (["near_image"], [2]), (["image"], [0, 1, 2])]:
        assert sorted(map(_number, contaminated_ids(run, kinds)[""].to_pylist())) == expected


def test_a_question_about_a_copy_of_the_image_in_the_same_set_is_a_pair(config, tmp_path):
    path = _questions(tmp_path / "set.parquet", [(picture(0), "Is it day?"), (picture(0, side=64), "Is it a boat?")])
    settings = config.model_dump(mode="json")
    settings["contamination"] = {"against": [{"name": "set", "path": path}]}
    sets = EvaluationSets.load(parse_config(settings))
    [found] = sets.match(look_at(picture(0), config.data.images, perceptual=True), ["Is it a boat?"])
    assert (found["image_match"], found["pair"]) == ("image", True)


def test_names_order_and_content_are_the_identity_of_the_sets(leaky, tmp_path):
    first = EvaluationSets.load(leaky).identity
    assert EvaluationSets.load(leaky).identity == first
    _questions(tmp_path / "other.parquet", [(picture(200), "Is it something else?")])
    assert EvaluationSets.load(leaky).identity != first


def test_the_question_in_a_templated_prompt_is_found(config, tmp_path):
    from adamllm_ray.data.verdicts import Verdict
    from adamllm_ray.evaluation.tasks import load_questions

    choices = {"A": "Lung", "B": "Heart", "C": "Liver", "D": "Kidney", "label": "B"}
    prompt = "Question: Which organ is shown here? The choices are: A: Lung B: Heart C: Liver D: Kidney"
    other = "Look at the picture, then answer as briefly as you can: is the upper half of it dark?"
    rows = [{"image": picture(n), "input": text, **choices} for n, text in enumerate((prompt, other))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-0.parquet")
    settings = config.model_dump(mode="json")
    settings["evaluation"]["tasks"] = [{"name": "pmc_vqa", "path": str(tmp_path)}]
    settings = parse_config(settings)
    assert [one.verdict for one in load_questions(settings.evaluation)] == [Verdict.OK] * 2
    sets = EvaluationSets.load(settings)

    def found(number, asked):
        image = look_at(picture(number), config.data.images, perceptual=True)
        [columns] = sets.match(image, [asked])
        return columns.get("question_match"), columns["pair"]

    assert found(0, "which organ is shown here") == ("question", True)
    assert found(0, "Which organ is shown here, then? (A) lung (B) heart") == ("near_question", True)
    assert found(1, "which organ is shown here") == ("question", False)
    assert found(1, "Is the upper half of it dark?") == (None, True)  # inside its prompt: only beside its image


def test_two_splits_of_a_set_are_two_sets(config, tmp_path):
    (tmp_path / "s").mkdir()
    for number, split in enumerate(("test", "validation")):
        _questions(tmp_path / "s" / f"{split}-0.parquet", [(picture(number), f"Is it {split}?")])
    own = _questions(tmp_path / "own.parquet", [(picture(5), "Is it mine?")])
    task = {"name": "s", "path": str(tmp_path / "s")}
    settings = config.model_dump(mode="json")
    settings["evaluation"]["tasks"] = [task | {"split": "test"}, {"name": "own", "path": own}]
    settings["contamination"] = {
        "against": [
            task | {"split": "validation"},
            task | {"split": "test"},
            {"name": "own", "path": str(tmp_path / "s")},
        ]
    }
    sets = EvaluationSets.load(parse_config(settings))
    assert list(sets.names) == [
        "s, validation",
        "s, test",
        "own (contamination.against.2)",
        "own (evaluation.tasks.1)",
    ]
    [found] = sets.match(look_at(picture(1), config.data.images, perceptual=True), ["Is it validation?"])
    assert (found["set"], found["pair"]) == ("s, validation", True)


def test_without_a_synthesis_there_is_nothing_to_compare(leaky, tmp_path):
    from adamllm_ray.data.run import RunFolder

    with pytest.raises(ConfigError, match="no finished synthesis"):
        find_contamination(leaky, RunFolder(str(tmp_path / "nothing")), EvaluationSets.load(leaky))
