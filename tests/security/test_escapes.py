"""Hostile text where people and programs read it: messages and logs, the report, the model card (reliability 36).

Nothing is written as CSV and no shell is ever started; both are checked on the source.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import DataSection, parse_config
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.sources import read_pairs
from adamllm_ray.errors import AdamLLMError, SourceError, TooManyFailures
from adamllm_ray.exits import outcome
from tests import hostile
from tests.security.test_addresses import PACKAGE

pytestmark = [pytest.mark.timeout(120), pytest.mark.guards]


def harmless(text: str) -> bool:
    """No line of its own, and nothing that a terminal obeys."""
    lines = text.split("\n")
    return not any(line.startswith("FORGED") for line in lines) and not set(text) & set("\r\x1b\u202e")


def test_what_a_failed_ingest_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and texts of records are in its message, and on the terminal, as text."""
    records: list[Any] = [hostile.share_gpt(f"a.png{hostile.FORGED}", "A pond.") for _ in range(3)]
    records += ["{" + hostile.FORGED.strip("\n")] * 3
    source = hostile.write_folder(tmp_path / "s", {}, records)
    config = parse_config({"run": {"output": str(tmp_path / "run")}, "data": {"path": str(source)}})
    with pytest.raises(TooManyFailures) as caught:
        ingest(config, RunFolder(config.run.output))
    assert "FORGED" in str(caught.value)
    assert harmless(str(caught.value))
    assert outcome(lambda: ingest(config, RunFolder(config.run.output))).code == 75
    assert harmless(capsys.readouterr().err)


def failing(folder: Path, kind: str) -> DataSection:
    """A source that cannot be read, whose files, columns or splits have hostile names."""
    folder.mkdir()
    name = "x" + hostile.FORGED
    if kind == "two files":
        for number in range(2):
            (folder / f"{number}{name}.json").write_text("[]")
        return DataSection(path=str(folder))
    if kind == "a broken list":
        (folder / f"{name}.json").write_text('[{"a": FORGED')
        return DataSection(path=str(folder))
    if kind == "columns":
        pq.write_table(pa.table({name: [b"x"], "caption": ["c"]}), folder / "t.parquet")
        return DataSection(format="parquet", path=str(folder))
    if kind == "no texts":
        pq.write_table(pa.table({"image": [b"x"], "caption": [{name: 1}]}), folder / "t.parquet")
        return DataSection(format="parquet", path=str(folder))
    if kind == "a damaged table":
        (folder / f"{name}.parquet").write_bytes(b"PAR1 and nothing else")
        return DataSection(format="parquet", path=str(folder))
    if kind == "damaged pages":
        file = folder / f"{name}.parquet"
        pq.write_table(pa.table({"image": [b"x"] * 9, "caption": ["c"] * 9}), file, use_dictionary=False)
        whole = file.read_bytes()
        file.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
        return DataSection(format="parquet", path=str(folder))
    if kind == "a damaged shard":
        (folder / f"{name}.tar").write_bytes(b"x" * 2000)
        return DataSection(format="webdataset", path=str(folder))
    (folder / "dataset_dict.json").write_text('{"splits": ["' + "x\\nFORGED\\u001b" + '", "y"]}')
    return DataSection(format="huggingface", path=str(folder))


@pytest.mark.parametrize(
    "kind",
    [
        *("two files", "a broken list", "columns", "no texts"),
        *("a damaged table", "damaged pages", "a damaged shard", "splits"),
    ],
)
def test_what_is_said_of_a_source_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceError) as caught:
        list(read_pairs(failing(tmp_path / "s", kind)))
    assert "FORGED" in str(caught.value)
    assert harmless(str(caught.value))


def test_a_model_name_is_told_on_one_line() -> None:
    from adamllm_ray.models.checkpoint import resolve_model

    with pytest.raises(AdamLLMError) as caught:
        resolve_model("x" * 300 + hostile.FORGED)
    assert harmless(str(caught.value))


def test_templates_escape_everything() -> None:
    from adamllm_ray.report.build import environment

    text = environment().from_string("{{ text }}").render(text="<script>alert(1)</script>\"'&")
    assert text == "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;"
    templates = list((PACKAGE / "report").glob("*.j2"))
    assert templates
    for template in templates:
        source = template.read_text("utf-8")
        assert "autoescape" not in source, template
        assert "| safe" not in source, template


def test_no_shell_is_started_and_no_text_is_run() -> None:
    """`ruff` looks for the same; here it holds without it."""
    refused = {"eval", "exec", "compile", "__import__"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                assert name not in refused, (path, node.lineno)
                assert not any(word.arg == "shell" for word in node.keywords), (path, node.lineno)
                whole = ast.unparse(node.func)
                assert whole not in ("os.system", "os.popen", "yaml.unsafe_load", "torch.load"), (path, node.lineno)
