"""Every branch of how a caption and a task become turns, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.config import ConversationSection, parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation.metrics.text import conclusion
from adamllm_ray.training.wording import (
    REVERSED,
    caption_request,
    joined_answer,
    official_branch,
    shipped_requests,
    single_stage_turns,
    task_text,
    task_texts,
    turn_kinds,
    with_pool,
)

ROW = {"id": "r", "caption": "a cat", "instruction": "what?", "informative": "It is a cat", "precise": "cat"}
TASK = {"instruction": "Where?", "informative": "It lies in the north", "precise": "a lake"}
DEFAULT = ConversationSection()


def section(**values: Any) -> ConversationSection:
    return ConversationSection.model_validate(values)


def test_forms_order_and_image() -> None:
    both = {epoch: single_stage_turns(ROW, "both", DEFAULT, seed=0, epoch=epoch) for epoch in range(40)}
    first = [turns[1].text == "a cat" for turns in both.values()]
    assert 8 < sum(first) < 32  # about half begin with the caption
    for epoch, turns in both.items():
        assert [turn.image for turn in turns] == [True, False, False, False]
        kinds = turn_kinds(ROW, "both", seed=0, epoch=epoch)
        assert [turn.text == "a cat" for turn in turns[1::2]] == [kind == "caption" for kind in kinds]
    for share in (0.0, 1.0):
        draw: dict[str, Any] = {"seed": 0, "epoch": 5, "caption_first": share}
        [kind] = {turn_kinds(ROW, "both", **draw | {"epoch": epoch})[0] for epoch in range(40)}
        assert kind == ("caption" if share else "task")
        assert (single_stage_turns(ROW, "both", DEFAULT, **draw)[1].text == "a cat") == bool(share)
    assert both[3] == single_stage_turns(ROW, "both", DEFAULT, seed=0, epoch=3)
    task = single_stage_turns(ROW, "task", DEFAULT, seed=0, epoch=0)
    assert [turn.text for turn in task] == ["what?", "It is a cat"]
    assert len(single_stage_turns(ROW, "caption", DEFAULT, seed=0, epoch=0)) == 2


def test_further_tasks_follow_the_first() -> None:
    row = ROW | {"further": [TASK, TASK | {"instruction": "Why?"}]}
    turns = single_stage_turns(row, "task", DEFAULT, seed=0, epoch=0)
    assert [turn.text for turn in turns[::2]] == ["what?", "Where?", "Why?"]
    assert [turn.image for turn in turns] == [True, *[False] * 5]
    assert turn_kinds(row, "task", seed=0, epoch=0) == ["task"] * 3
    assert sorted(turn_kinds(row, "both", seed=0, epoch=0)) == ["caption", *["task"] * 3]


def test_requests_for_a_caption() -> None:
    pool = shipped_requests()
    assert len(pool) == len(set(pool)) >= 30
    drawn = {caption_request(ROW | {"id": str(number)}, DEFAULT, seed=0, epoch=0) for number in range(400)}
    assert len(drawn) > 25
    assert drawn <= set(pool)
    own = ROW | {"caption_instruction": "Name it."}
    assert caption_request(own, DEFAULT, seed=0, epoch=0) == "Name it."
    assert caption_request(own, section(caption_request="pool"), seed=0, epoch=0) in pool
    assert caption_request(ROW, section(caption_requests=["One."]), seed=0, epoch=0) == "One."


def test_a_pool_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "pool.txt"
    file.write_text("# ours\nName the dish.\n\n  What is cooked here?  \n")
    made = with_pool(section(caption_pool=str(file)))
    assert made.caption_requests == ["Name the dish.", "What is cooked here?"]
    file.write_text("# nothing\n")
    for path in (file, tmp_path / "missing.txt"):
        with pytest.raises(ConfigError, match="caption_pool"):
            with_pool(section(caption_pool=str(path)))


@pytest.mark.parametrize(
    ("informative", "precise", "joined"),
    [
        ("Water lies in the north.", "north", "Water lies in the north."),
        ("Water lies in the north", "a lake", "Water lies in the north. Therefore, the answer is a lake."),
        ("Count them!", "13", "Count them! Therefore, the answer is 13."),
        ("There are 13", "3", "There are 13. Therefore, the answer is 3."),
        ("The answer is Yes", "yes.", "The answer is Yes"),
        ("", "yes", "Therefore, the answer is yes."),
        ("Look.", "Really?", "Look. Therefore, the answer is Really?"),
        ("A {answer} in braces", "{precise}", "A {answer} in braces. Therefore, the answer is {precise}."),
    ],
)
def test_joined_answer(informative: str, precise: str, joined: str) -> None:
    assert joined_answer(informative, precise) == joined


def test_the_bank_is_used_and_every_sentence_leads_to_the_conclusion() -> None:
    answers = {task_text(TASK, DEFAULT, seed=0, id=str(number))[1] for number in range(200)}
    assert len(answers) == len(DEFAULT.joining) == 8
    for answer in answers:
        assert answer.startswith("It lies in the north. ")
        assert conclusion(answer).strip(" .") == "a lake"  # where the strict metrics look for it
    assert {task_text(TASK, section(joining=["Hence: {answer}!"]), seed=0, id="x")[1]} == {
        "It lies in the north. Hence: a lake!"
    }
    with pytest.raises(ConfigError, match=r"hold \{answer\} once"):
        parse_config({"run": {"output": "r"}, "conversations": {"joining": ["no place"]}})


def test_one_answer_alone() -> None:
    assert task_text(TASK, section(answer="precise"), seed=0, id="x") == ("Where?", "a lake")
    assert task_text(TASK, section(answer="informative"), seed=0, id="x") == ("Where?", "It lies in the north")


@pytest.mark.parametrize(
    ("informative", "precise", "branch"),
    [
        ("It is red. So it stops.", "stop", "informative"),
        ("So it stops. It is red.", "stop", "reasoned"),  # only the last sentence counts
        ("There is also a dog.", "dog", "informative"),  # "also " holds "so "
        ("The torso is bare.", "bare", "informative"),
        ("It is red. Therefore, it stops.", "stop", "reasoned"),  # a comma, not a blank
        ("It is red. THEREFORE it stops.", "stop", "informative"),
        ("It could be anything.", "x", "informative"),
        ("It is so", "x", "reasoned"),  # no blank behind
        ("A cat sits there.", "the answer is cat", "appended"),
        ("A cat sits there.", "Also a cat", "appended"),
        ("A cat sits there.", "cat", "reasoned"),
    ],
)
def test_branches_of_the_papers_code(informative: str, precise: str, branch: str) -> None:
    assert official_branch(informative, precise) == branch
    task = {"instruction": "q", "informative": informative, "precise": precise}
    wanted = {"informative": informative, "appended": f"{informative} {precise}"}
    user, answer = task_text(task, section(compat="official", joining=["Thus {answer}."]), seed=0, id="x")
    assert user == "q"
    stop = "" if informative.endswith(".") else "."
    assert answer == wanted.get(branch, f"{informative}{stop} Thus {precise}.")


def test_reversed_tasks_have_their_share_and_every_shape() -> None:
    turned = section(reversed_share=0.32, joining=["Thus {answer}."])
    found = [task_text(TASK, turned, seed=0, id=str(number)) for number in range(1000)]
    straight = [pair for pair in found if pair[0] == "Where?"]
    assert 620 < len(straight) < 740
    others = {pair for pair in found if pair[0] != "Where?"}
    assert len(others) == len(REVERSED)
    for user, assistant in others:
        assert assistant.startswith("Where?")
        assert "{" not in user + assistant
        assert "a lake" in user + assistant or "in the north" in user
    assert {task_text(TASK, section(reversed_share=1.0), seed=0, id=str(n))[0] for n in range(9)}.isdisjoint({"Where?"})


@settings(max_examples=100, deadline=None)
@given(id=st.text(min_size=1), number=st.integers(0, 3), share=st.floats(0, 1))
def test_wording_depends_on_the_record_alone(id: str, number: int, share: float) -> None:
    """Not on its neighbours, nor on how many tasks are reversed."""
    turned = section(reversed_share=share)
    row = ROW | {"id": id, "further": [TASK] * 3}
    assert task_texts(row, turned, seed=1)[number] == task_text(
        {name: ROW[name] for name in TASK} if number == 0 else TASK, turned, seed=1, id=id, number=number
    )
    straight = task_text(TASK, DEFAULT, seed=1, id=id)
    assert task_text(TASK, turned, seed=1, id=id) == straight or share > 0
