"""Bad records of each file become refusals with a reason; the others are joined by file name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, SourceError
from adamllm_ray.training.seed.records import Asked, UnusableRecord, gather, question_of
from tests.training.seed.files import records, talk, write


def test_three_files_are_joined_by_the_name_of_the_image(tmp_path: Path) -> None:
    found = gather(write(tmp_path, records(2)))
    assert not found.refused
    assert dict(found.read) == {"captions": 2, "precise": 2, "informative": 2}
    image = found.images["1.png"]
    assert (image.path, image.caption, image.task) == ("allava/images/1.png", "caption 1", "shapes")
    assert image.precise == [Asked("What is 1?", "p1")]
    assert image.informative == [Asked("What is 1?", "informative 1.")]


BAD: list[tuple[str, Any, Verdict]] = [
    ("captions", "a text", Verdict.ROW_UNREADABLE),
    ("captions", ["nested"], Verdict.ROW_UNREADABLE),
    ("captions", {"caption": "no image"}, Verdict.ROW_UNREADABLE),
    ("captions", {"image": "", "caption": "c"}, Verdict.ROW_UNREADABLE),
    ("captions", {"image": "9.png"}, Verdict.ROW_UNREADABLE),
    ("captions", {"image": "9.png", "caption": 7}, Verdict.ROW_UNREADABLE),
    ("captions", {"image": "9.png", "caption": " "}, Verdict.CAPTION_EMPTY),
    ("captions", {"image": "other/0.png", "caption": "again"}, Verdict.DUPLICATE),
    ("precise", None, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png"}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": []}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": [talk("q", "a")]}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": [{"from": "human"}]}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": [{"from": "bot", "value": "a"}]}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": talk("q")}, Verdict.SEED_UNANSWERED),
    ("precise", {"image": "0.png", "conversations": talk("q", " ")}, Verdict.SEED_UNANSWERED),
    ("precise", {"image": "0.png", "conversations": talk("q", "a", "q2")}, Verdict.SEED_UNANSWERED),
    ("precise", {"image": "0.png", "conversations": talk("q")[:1] + talk("q2", "a")}, Verdict.SEED_UNANSWERED),
    ("precise", {"image": "0.png", "conversations": talk("q", "a")[1:]}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": talk("a <image> b", "c")}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": talk("<image>", "c")}, Verdict.ROW_UNREADABLE),
    ("precise", {"image": "0.png", "conversations": talk("what is 0 ?", "other")}, Verdict.DUPLICATE),
    ("informative", {"image": "77.png", "conversations": talk("q", "a")}, Verdict.SEED_NO_CAPTION),
]


@pytest.mark.parametrize(("file", "record", "verdict"), BAD)
def test_a_bad_record_is_refused_and_told(tmp_path: Path, file: str, record: Any, verdict: Verdict) -> None:
    made = records(1)
    made[file].append(record)
    found = gather(write(tmp_path, made))
    (refused,) = found.refused
    assert (refused.file, refused.key, refused.verdict) == (file, "2", verdict)
    assert refused.detail
    assert list(found.images) == ["0.png"]
    assert found.images["0.png"].precise == [Asked("What is 0?", "p0")]


def test_the_papers_joining_keeps_a_question_that_is_asked_twice(tmp_path: Path) -> None:
    made = records(1)
    made["precise"].append({"image": "0.png", "task_name": "last", "conversations": talk("What is 0?", "other")})
    found = gather(write(tmp_path, made, compat="official"))
    assert [one.answer for one in found.images["0.png"].precise] == ["p0", "other"]
    assert found.images["0.png"].task == "last"


def test_captions_may_be_conversations_and_lines(tmp_path: Path) -> None:
    section = write(tmp_path, records(1))
    (tmp_path / "c.jsonl").write_text(
        '{"image": "0.png", "conversations": [{"from": "gpt", "value": "c"}]}\nnot json\n'
    )
    found = gather(section.model_copy(update={"captions": str(tmp_path / "c.jsonl")}))
    assert found.images["0.png"].caption == "c"
    assert [(one.key, one.verdict) for one in found.refused] == [("2", Verdict.ROW_UNREADABLE)]


def test_a_file_that_cannot_be_read_at_all_is_named(tmp_path: Path) -> None:
    section = write(tmp_path, records(1))
    (tmp_path / "precise.json").write_text('[{"image": "0.png"')
    with pytest.raises(SourceError, match=r"seed\.precise: .*not a JSON list"):
        gather(section)
    (tmp_path / "precise.json").unlink()
    with pytest.raises(SourceError, match=r"seed\.precise"):
        gather(section)


def test_the_image_tag_is_taken_off_either_end() -> None:
    assert question_of("<image>\nWhat?") == question_of("What?\n<image>") == question_of(" What? ") == "What?"
    with pytest.raises(UnusableRecord, match="twice"):
        question_of("<image> What? <image>")


def test_two_of_three_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="informative missing"):
        parse_config({"run": {"output": "r"}, "seed": {"captions": "c", "precise": "p"}})
