"""The satellite domain: regions apart, gold answers right, the same rows every time."""

import itertools

import pytest

from adamllm_ray.pocket import chips, domain, language


@pytest.fixture(scope="module")
def pairs():
    return list(domain.training_pairs(120))


def _box(chip):
    row, column = int(chip.key[1:5]), int(chip.key[6:10])
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
def test_questions_are_balanced_and_answerable():
    questions = list(domain.benchmark_questions())
    assert len({question.id for question in questions}) == len(questions)
    assert {question.type for question in questions} >= set(domain.NAMES.values())
    assert all(question.answer in question.choices for question in questions)
    closed = [question.answer for question in questions if question.type.endswith("yes/no")]
    assert closed.count("yes") == closed.count("no")
