import json

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError, SourceError
from adamllm_ray.quality.measure import PROFILE, judge_data, profile
from adamllm_ray.report.summary import contamination_lines, quality_lines
from tests.quality.conftest import finish, task


@pytest.fixture
def filled(run):
    finish(run, "synthesize", [task(i) for i in range(9)], {"kept": 9})
    return run


def test_profile_is_kept_and_made_again_for_other_labels(config, filled, tmp_path):
    first, none = judge_data(config, filled)
    assert none is None
    assert first["calibration"] is None
    assert json.loads(filled.read(PROFILE)) == first == profile(config, filled)
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"id": f"{i:032x}", "right": i > 2}) + "\n" for i in range(5)))
    settings = config.model_dump(mode="json") | {"report": {"labels": str(labels)}}
    second = profile(parse_config(settings), filled)
    assert second["calibration"]["n"] == 5
    assert second["right"]["kept"] == {"labelled": 5, "right": 2}
    assert any("Brier score" in line for line in quality_lines(second))
    labels.write_text('{"id": 3}\n')
    with pytest.raises(SourceError, match="row 1"):
        profile(parse_config(settings), filled)


@pytest.mark.parametrize("right", ["false", "no", 0, 1, None, [True]])
def test_a_label_that_is_no_boolean_is_refused(config, filled, tmp_path, right):
    labels = tmp_path / "labels.jsonl"
    rows = [{"id": "a", "right": True}, {"id": "b", "right": right}]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config.model_dump(mode="json") | {"report": {"labels": str(labels)}}
    with pytest.raises(SourceError, match=r"report\.labels: row 2 of .*write true or false"):
        profile(parse_config(settings), filled)


def test_the_pocket_domain_labels_itself(config, run):
    facts = json.dumps({"facts": [["side", "water", "left"]]})
    asked = {
        "meta": facts,
        "instruction": "On which side is the water?",
        "informative": "The water is on the left side.",
    }
    rows = [task(0, **asked, precise="left"), task(1, **asked, precise="right"), task(2)]
    finish(run, "synthesize", rows, {"kept": 3})
    settings = config.model_dump(mode="json") | {"data": {"format": "pocket"}}
    found = profile(parse_config(settings), run)
    assert found["right"]["judged"] == {"labelled": 2, "right": 1}
    assert found["made_from"]["gold"] == "the pocket domain's facts"


def test_without_a_synthesis(config, run):
    assert profile(config, run) is None
    with pytest.raises(ConfigError, match="no finished synthesis"):
        judge_data(config, run)


def test_lines_of_a_set():
    found = {"rows": 1200, "sets": {"pocket": {"counts": {"image": 3, "pair": 1}}}}
    (line,) = contamination_lines(found)
    assert "pocket" in line
    assert "image 3, nearly 0" in line
    assert contamination_lines(None) == []
