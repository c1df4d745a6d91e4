"""Training examples of the pocket models: deterministic, with loss where it belongs."""

from random import Random

import pytest

from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.pocket import world
from adamllm_ray.pocket.architecture import build_processor, build_tokenizer
from adamllm_ray.pocket.build import _section
from adamllm_ray.pocket.curriculum import Curriculum, Steps, vocabulary
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import IGNORE


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary(), 1000)


@pytest.fixture(scope="module")
def school(tokenizer):
    return Curriculum(ChatFormat(tokenizer))


def test_reading_has_no_loss_on_the_caption(school):
    example = school._reading(world.text_facts(Random(0)), Random(0))
    first = next(index for index, label in enumerate(example.labels) if label != IGNORE)
    given = school.chat.decode(example.ids[:first])
    assert given.count("assistant") == 2  # the caption's turn and the first answer's header are before any loss
    assert example.image is None


def test_seed_example_ends_with_end_of_text_and_learns_the_questions(school):
    example = school.seed(Random(3), 0.0)
    learnt = school.chat.decode([label for label in example.labels if label != IGNORE])
    assert example.ids[-1] == school.chat.eos_id == example.labels[-1]
    assert "Answer with a precise response." in learnt
    assert "Answer with an informative response." in learnt


def test_judge_cases_have_all_three_labels(school):
    random = Random(0)
    labels = [school.judge_case(random)[1] for _ in range(300)]
    assert 100 < labels.count("Yes") < 170
    assert 100 < labels.count("No") < 170
    assert 10 < labels.count("Open") < 60


def test_batches_of_a_step_depend_on_its_number_only(school, tokenizer):
    section = _section(8, 1e-3)
    sources = [Steps("x", school.general, Collator(build_processor(tokenizer), 512), section, 10) for _ in range(2)]
    one, other = sources[0].load(3), sources[1].load(3)
    assert one[0].inputs["input_ids"].tolist() == other[0].inputs["input_ids"].tolist()
    assert sources[0].load(4)[0].inputs["input_ids"].tolist() != one[0].inputs["input_ids"].tolist()
