"""Configuration: refused with every wrong key named, or accepted; nothing in between."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.config import RunConfig, config_schema, dump_config, load_config, parse_config
from adamllm_ray.errors import ConfigError

pytestmark = [pytest.mark.timeout(120), pytest.mark.guards]
MINIMAL: dict[str, Any] = {"run": {"output": "runs/x"}}


def problem(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, **tree})
    return str(caught.value)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text, "utf-8")
    return file


def test_defaults_are_complete() -> None:
    config = parse_config(MINIMAL)
    assert config.training.zero_stage == 2
    assert config.models.base == "pocket:base"


def test_unknown_key_names_the_nearest() -> None:
    message = problem({"training": {"learning_rat": 1e-5}})
    assert "training.learning_rat: unknown key; did you mean 'learning_rate'?" in message
    assert "data.images.max_pixel: unknown key; did you mean 'max_pixels'?" in problem(
        {"data": {"images": {"max_pixel": 1}}}
    )
    assert "synthesis.engine.replica" in problem({"synthesis": {"engine": {"replica": 2}}})
    assert "did you mean 'training'?" in problem({"trainig": {}})


def test_unknown_key_in_an_optional_section_and_in_a_list() -> None:
    assert "did you mean 'rank'?" in problem({"training": {"lora": {"rnak": 4}}})
    assert "mixture.replay.0.wieght" in problem({"mixture": {"replay": [{"name": "a", "path": "b", "wieght": 1}]}})


def test_all_problems_are_told_at_once() -> None:
    message = problem({"training": {"epochs": 0, "nope": 1}, "judge": {"threshold": 2}, "data": {"format": "csv"}})
    for key in ("training.epochs", "training.nope", "judge.threshold", "data.format"):
        assert key in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("mixture", "both", -1),
        ("mixture", "both", float("nan")),
        ("mixture", "task", float("inf")),
        ("mixture", "untasked", 1.5),
        ("mixture", "tolerance", -0.1),
        ("training", "epochs", "two"),
        ("training", "epochs", 1.5),
        ("training", "epochs", True),
        ("training", "learning_rate", 0),
        ("training", "learning_rate", "fast"),
        ("training", "zero_stage", 4),
        ("training", "keep_checkpoints", 1),
        ("training", "betas", [0.9]),
        ("training", "betas", [0.9, 1.0]),
        ("training", "betas", [0.9, float("nan")]),
        ("data", "max_caption_chars", -1),
        ("data", "max_failed_share", float("nan")),
        ("data", "path", 3),
        ("data", "images", None),
        ("run", "seed", -1),
        ("run", "name", "../x"),
        ("judge", "threshold", [0.5]),
    ],
)
def test_wrong_types_and_values(section: str, key: str, value: Any) -> None:
    tree = {section: {**MINIMAL.get(section, {}), key: value}}
    assert f"{section}.{key}" in problem(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"data": {"path": "s3://AKIA:hush@bucket/x"}},
        {"data": {"s3": {"endpoint": "https://AKIA:hush@host"}}},
        {"run": {"output": "s3://hush@bucket/x"}},
        {"mixture": {"replay": [{"name": "a", "path": "s3://AKIA:hush@bucket", "weight": 1}]}},
        {"synthesis": {"engine": {"extra": {"deep": ["http://me:hush@host"]}}}},
    ],
)
def test_secrets_in_paths_are_refused_and_not_repeated(tree: dict[str, Any]) -> None:
    message = problem(tree)
    assert "a user or password" in message
    assert "hush" not in message


def test_mixture_of_nothing() -> None:
    assert "at least one of both, caption, task" in problem({"mixture": {"both": 0}})


def test_batches_must_divide() -> None:
    assert "must be a multiple" in problem({"training": {"global_batch": 10, "micro_batch": 4, "workers": 2}})


def test_output_is_required() -> None:
    with pytest.raises(ConfigError, match=r"run\.output: is required"):
        parse_config({"run": {}})
    with pytest.raises(ConfigError, match="run: is required"):
        parse_config({})


def test_yaml_file_with_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, "run: {output: runs/x}\ntraining:\n  learning_rate: 1e-5\n")
    config = load_config(file, ["training.epochs=3", "data.path=/d", "judge.few_shot=false", "training.lora.rank=8"])
    assert (config.training.learning_rate, config.training.epochs) == (1e-5, 3)
    assert config.training.lora is not None
    assert (config.data.path, config.judge.few_shot, config.training.lora.rank) == ("/d", False, 8)


@pytest.mark.parametrize("override", ["training.epochs", "=3", "run.output.x=1", "training.epochs=[", "nope.x=1"])
def test_wrong_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, "run: {output: runs/x}\n"), [override])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "[1, 2]",
        "run: {output: x",
        "run: !!python/object/apply:os.system ['echo hacked > marker']",
        "run: {output: &a [*a]}",
        "run: {output: x}\n? [a, b]\n: c\n",
        "run: {output: 2024-01-01}",
        "run: {output: 2024-99-99}",
        'run: {output: "\\ud800"}',
        "run: {output: x, seed: " + "9" * 5000 + "}",
        "run: " + "[" * 20_000,
        "run: {output: x}\na: &a [1]\nb: *a\n",
        "\t- x",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, text))
    assert not (tmp_path / "marker").exists()


def test_aliases_are_refused(tmp_path: Path) -> None:
    """Also where they would do no harm: ten lines of them can unfold to gigabytes."""
    with pytest.raises(ConfigError, match="aliases"):
        load_config(write(tmp_path, "run: {output: &a x, name: *a}\n"))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (10 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(tmp_path / "large.yaml")


def test_dump_reads_back(tmp_path: Path) -> None:
    config = parse_config({**MINIMAL, "training": {"lora": {"rank": 4}, "learning_rate": 3e-5}})
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_schema_is_json_and_lists_every_section() -> None:
    schema = json.loads(json.dumps(config_schema()))
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["additionalProperties"] is False


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=8))
ANYTHING = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def sections() -> st.SearchStrategy[dict[str, Any]]:
    """Trees that look like configurations: real section and key names, arbitrary values, now and then a stranger."""
    schema = config_schema()
    names = {
        name: schema["$defs"][part["$ref"].rpartition("/")[2]]["properties"] for name, part in _refs(schema).items()
    }
    keyed = {
        name: st.dictionaries(st.sampled_from(sorted(keys)) | st.text(max_size=6), ANYTHING, max_size=4)
        for name, keys in names.items()
    }
    return st.fixed_dictionaries({}, optional={**keyed, "strange": ANYTHING})


def _refs(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: part for name, part in schema["properties"].items() if "$ref" in part}


@settings(max_examples=500, deadline=None, database=None)
@given(tree=sections(), complete=st.booleans())
def test_random_configurations_parse_or_are_refused(tree: dict[str, Any], complete: bool) -> None:
    if complete:
        tree = {**tree, "run": {**tree.get("run", {}), "output": "runs/x"}}
    try:
        config = parse_config(tree)
    except ConfigError:
        return
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_random_files_parse_or_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "random.yaml"
    file.write_bytes(data)
    with contextlib.suppress(ConfigError):
        load_config(file)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("synthesis", {"candidates": 4}, "temperature above 0"),
        ("synthesis", {"retry_temperature": 0.5, "temperature": 0.7}, "must be above temperature"),
        ("synthesis", {"engine": {"replicas": 2, "min_replicas": 3}}, "must not be above replicas"),
        ("judge", {"keep": "always"}, "judge.keep"),
    ],
)
def test_sampling_and_pool_sizes_that_cannot_be_name_the_fix(key, value, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"run": {"output": "x"}, key: value})


def test_pool_keeps_its_size_unless_told_otherwise():
    pool = parse_config({"run": {"output": "x"}, "synthesis": {"engine": {"replicas": 8}}}).synthesis.engine
    assert pool.least_replicas == 8


@pytest.mark.parametrize(
    "value", ['!!int ""', "!!bool x", "!!float ''", "!!timestamp x", "! a", "!!str a", "!!map [a]"]
)
def test_tags_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"tags .* are not allowed"):
        load_config(write(tmp_path, f"run: {{output: x, seed: {value}}}\n"))


def test_numbers_and_dates_that_python_cannot_hold(tmp_path: Path) -> None:
    for value in ("1" + ":0" * 200 + ":0.0", "9" * 5000, "2001-99-01", "0001-01-01 00:00:00 +23:59"):
        with pytest.raises(ConfigError):
            load_config(write(tmp_path, f"run: {{output: x, seed: {value}}}\n"))


@pytest.mark.parametrize("name", ["1e5", "12.e-3", "7E0", "0x1f", "1_000", "2001-01-01", "yes", "null"])
def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path: Path, name: str) -> None:
    config = parse_config({"run": {"output": name, "name": name}, "data": {"path": f"+{name}"}})
    assert load_config(write(tmp_path, dump_config(config))) == config
