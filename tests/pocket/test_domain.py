"""The satellite domain: regions apart, gold answers right, the same rows every time."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adamllm_ray.config import load_config, parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation import runner
from adamllm_ray.evaluation.tasks import describe, load_questions
from adamllm_ray.pocket import chips, curriculum, domain, language, regions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pairs():
    return list(domain.training_pairs(120))


def _box(chip):
    row, column = chip.corner
    return range(row, row + 60), range(column, column + 60)


@pytest.mark.timeout(120)
def test_no_test_chip_touches_a_training_chip():
    columns = {split: [_box(chip)[1] for chip in chips.all_chips(split)] for split in ("train", "test")}
    starts = {split: {box.start for box in boxes} for split, boxes in columns.items()}
    gaps = [abs(one - other) for one, other in itertools.product(starts["train"], starts["test"])]
    assert min(gaps) > 60


@pytest.mark.timeout(120)
def test_no_validation_chip_touches_one_that_is_trained_on_where_it_is_held_back():
    kept = {(pair.key[1:5], pair.key[6:10]) for pair in domain.training_pairs(hold_back=True)}
    asked = {question.id[:10] for question in domain.validation_questions()}
    tested = {question.id[:10] for question in domain.benchmark_questions()}
    assert len(asked) > 100
    assert not asked & tested
    columns = [{int(column) for _, column in kept}, {int(key[6:10]) for key in asked}]
    assert min(abs(one - other) for one, other in itertools.product(*columns)) > 60


def test_pairs_repeat_and_carry_their_facts(pairs):
    again = list(domain.training_pairs(120))
    assert [(p.key, p.caption, p.image_bytes) for p in pairs] == [(p.key, p.caption, p.image_bytes) for p in again]
    assert len({pair.key for pair in pairs}) == 120
    assert all(domain.facts_from(pair.meta) for pair in pairs)


def test_check_triplet_knows_right_from_wrong(pairs):
    for pair in pairs[:40]:
        for fact in domain.facts_from(pair.meta):
            asked = language.open_question(fact)
            wrong = next(value for value in fact.values if value != fact.value)
            assert domain.check_triplet(pair.meta, asked.text, asked.informative, asked.precise) is True
            assert domain.check_triplet(pair.meta, asked.text, asked.informative, wrong) is False
            other = language.informative(language.Fact(fact.kind, fact.noun, wrong, fact.values))
            assert domain.check_triplet(pair.meta, asked.text, other, asked.precise) is False
    assert domain.check_triplet(pairs[0].meta, "What is for lunch?", "Soup.", "soup") is None


@pytest.mark.timeout(120)
def test_captions_tell_rare_facts_first():
    """Of what one caption may say of the land, that it is an island is told before that it is in one part."""
    places = {("island", "yes"): [], ("count", "one"): []}
    for pair in domain.training_pairs():
        for fact in domain.facts_from(pair.meta):
            if (fact.kind, fact.value) in places and fact.noun == "land":
                said = [language.sentence(fact, "plain"), language.sentence(fact, "sure").split(",")[0].rstrip(".")]
                found = [pair.caption.find(one) for one in said if one in pair.caption]
                places[fact.kind, fact.value] += [min(found) / len(pair.caption)] if found else []
    rare, common = places.values()
    assert 20 < len(rare) < len(common)
    assert sum(rare) / len(rare) < sum(common) / len(common)


@pytest.mark.timeout(120)
def test_a_limit_changes_no_caption(pairs):
    captions = {pair.key: pair.caption for pair in domain.training_pairs()}
    assert len(captions) == domain.DEFAULT_PAIRS
    assert all(captions[pair.key] == pair.caption for pair in pairs)
    assert all(pair.caption == captions.get(pair.key, pair.caption) for pair in domain.training_pairs(2000))


@pytest.mark.timeout(120)
def test_what_is_not_cut_has_too_little_to_say():
    random = np.random.default_rng(0)
    corners = zip(random.integers(500, 2100, 400).tolist(), random.integers(0, 5340, 400).tolist(), strict=True)
    dropped = [chips.cut(row, column, "train") for row, column in corners if not chips._near_land(row, column)]
    assert len(dropped) > 100
    assert not any(chip.land.any() or len(chip.facts) >= 3 for chip in dropped)


@pytest.mark.timeout(120)
def test_captions_notice_that_land_is_in_parts():
    """The test asks for one, two, three and four areas; among all chips four of five have one."""
    told = Counter()
    for pair in domain.training_pairs():
        for value in regions.NUMBERS:
            fact = language.count("land", value)
            plain = language.sentence(fact, "plain")
            told[value] += plain in pair.caption
    assert min(told.values()) > 20
    assert told["two"] + told["three"] + told["four"] > told["one"]


def test_relief_lights_the_land_and_not_the_water():
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 100, (60, 60, 3)).astype(np.uint8)
    land = np.zeros((60, 60), bool)
    land[:, :30] = True
    shades = np.full((60, 60), 200, np.uint8)
    shades[:30] = 180
    lit = chips._lit(pixels, shades, land)
    assert np.array_equal(lit[:, 29:], pixels[:, 29:])  # water, and the shore
    assert (lit[:30, :29] <= pixels[:30, :29]).all()
    assert (lit[30:, :29] >= pixels[30:, :29]).all()
    assert lit[:30, :29].mean() < 0.75 * pixels[:30, :29].mean()
    assert np.array_equal(chips._lit(pixels, shades, ~land & land), pixels)


@pytest.mark.timeout(120)
def test_questions_are_balanced_and_answerable():
    questions = list(domain.benchmark_questions())
    assert len({question.id for question in questions}) == len(questions)
    assert {question.type for question in questions} >= set(domain.NAMES.values())
    assert all(question.answer in question.choices for question in questions)
    closed = [question for question in questions if question.answer in ("yes", "no")]
    said = {text: [one.answer for one in closed if one.question == text] for text in {one.question for one in closed}}
    assert len(said) > 8
    assert all(answers.count("yes") == answers.count("no") > 0 for answers in said.values())


@pytest.mark.timeout(120)
def test_general_questions_are_a_task_beside_the_domain():
    """As the quickstart asks them: about pictures that no model was trained on, in columns of their own."""
    config = load_config(ROOT / "jobs" / "configs" / "quickstart.yaml", ["evaluation.limit=30"])
    [_, general] = config.evaluation.asked
    assert (general.general, general.task.name, general.task.limit) == (True, "pocket_general", 200)
    assert runner._task_fingerprint(general, config)["questions"]
    assert describe(general, config.evaluation)["split"] == "all rows"
    asked = list(load_questions(config.evaluation))
    of_task = {name: [one for one in asked if one.task == name] for name in ("pocket", "pocket_general")}
    assert [len(found) for found in of_task.values()] == [30, 200]
    assert len({one.id for one in asked}) == 230
    assert {one.type for one in of_task["pocket"]} <= {*domain.NAMES.values()} | {
        f"{n}, yes/no" for n in domain.NAMES.values()
    }
    assert all(one.type.startswith("pocket_general: ") for one in of_task["pocket_general"])
    assert all(one.answer and one.question and one.max_new_tokens == 48 for one in of_task["pocket_general"])
    trained = {curriculum.picture(number)[0] for number in range(20)}
    assert not trained & {one.image for one in of_task["pocket_general"]}
    with pytest.raises(ConfigError, match="'pocket_general' ships with the package"):
        parse_config({"evaluation": {"task": "pocket", "general": [{"name": "pocket_general", "path": "x"}]}})
