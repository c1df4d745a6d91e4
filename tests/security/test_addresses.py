"""Nothing that a record, a configuration or a store says makes us ask a server that nobody named (reliability 54, 55).

No URL is fetched anywhere, so an address needs no checking: a trap listens, and nobody comes; nor is a name looked up.
"""

from __future__ import annotations

import ast
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import DataSection, ImageLimits, ReplaySource, S3Section, parse_config
from adamllm_ray.data import s3, storage
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.sources import read_pairs, source_fingerprint
from adamllm_ray.errors import AdamLLMError, ImageRefused
from adamllm_ray.evaluation.tasks.files import TaskSource
from adamllm_ray.models.adapter import is_adapter, resolve_adapter
from adamllm_ray.models.checkpoint import model_fingerprint, resolve_model
from tests import hostile
from tests.security.servers import liar, trap

pytestmark = [pytest.mark.timeout(120), pytest.mark.guards]
PACKAGE = Path(__file__).parents[2] / "adamllm_ray"


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, list[str]]]:
    """(port of the trap, whom Python wanted to reach): connections and look-ups of names are noted, and refused."""
    with trap() as (port, came):

        def noted(what: str) -> Callable[..., Any]:
            def refuse(*arguments: Any, **_: Any) -> Any:
                came.append(f"{what} {arguments[-1] if what == 'connect' else arguments[0]}")
                raise OSError("not from here")

            return refuse

        monkeypatch.setattr(socket.socket, "connect", noted("connect"))
        monkeypatch.setattr(socket, "getaddrinfo", noted("look up"))
        yield port, came


def write_source(folder: Path, kind: str, names: list[str]) -> DataSection:
    """A source whose records have these as their images."""
    folder.mkdir()
    options: dict[str, Any] = {"format": kind, "path": str(folder)}
    if kind == "sharegpt":
        hostile.write_folder(folder, {}, [hostile.share_gpt(name, "A pond.") for name in names])
    elif kind == "parquet":
        pq.write_table(pa.table({"image": names, "caption": ["A pond."] * len(names)}), folder / "t.parquet")
    else:
        image = pa.array([{"bytes": None, "path": name} for name in names])
        table = pa.table({"image": image, "caption": ["A pond."] * len(names)})
        with pa.ipc.new_stream(folder / "d.arrow", table.schema) as sink:
            sink.write_table(table)
        (folder / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    return DataSection.model_validate(options)


def test_there_are_forty_cases() -> None:
    assert len(set(hostile.addresses(1))) == 40


@pytest.mark.parametrize("kind", ["sharegpt", "parquet", "huggingface"])
def test_no_address_of_a_record_is_asked(tmp_path: Path, watched: tuple[int, list[str]], kind: str) -> None:
    names = hostile.addresses(watched[0])
    pairs = list(read_pairs(write_source(tmp_path / "s", kind, names)))
    assert len(pairs) == 40
    for pair in pairs:
        assert pair.load is not None
        with pytest.raises(ImageRefused) as caught:
            pair.load()
        assert caught.value.verdict == "image_missing"
    assert watched[1] == []


def test_no_address_of_a_question_is_asked(tmp_path: Path, watched: tuple[int, list[str]]) -> None:
    names = hostile.addresses(watched[0])
    lines = [json.dumps({"image": name, "question": "?", "answer": "a", "type": "t"}) for name in names]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = TaskSource("evaluation.task", str(tmp_path / "t.jsonl"))
    folder = source.images()
    for row in source.rows():
        with pytest.raises(ImageRefused):
            folder.read(row["image"])
    assert len(source.digest()) == 64
    assert watched[1] == []


def section(name: str, value: str) -> Any:
    outer, _, inner = name.partition(".")
    return getattr(parse_config({"run": {"output": "x"}, outer: {inner: value}}), outer)


def _replay(value: str, run: Path) -> None:
    from adamllm_ray.training.replay import copy_replay

    stage = RunFolder(str(run)).stage("train")
    copy_replay([ReplaySource(name="general", path=value, weight=1.0)], ImageLimits(), stage)


def _seed(value: str, _: Path) -> None:
    from adamllm_ray.training.seed.records import gather

    files = dict.fromkeys(("captions", "precise", "informative"), value)
    gather(parse_config({"run": {"output": "x"}, "seed": files}).seed)


def _caption_pool(value: str, _: Path) -> None:
    from adamllm_ray.training.wording import with_pool

    with_pool(section("conversations.caption_pool", value), None)


def _labels(value: str, _: Path) -> None:
    from adamllm_ray.quality.measure import _labels as labels

    labels(parse_config({"run": {"output": "x"}, "report": {"labels": value}}))


def _reader(kind: str) -> Callable[[str, Path], None]:
    def read(value: str, _: Path) -> None:
        data = DataSection.model_validate({"format": kind, "path": value})
        source_fingerprint(data)
        list(read_pairs(data))

    return read


def _image_folder(value: str, run: Path) -> None:
    hostile.write_folder(run, {}, [hostile.share_gpt("a.png", "A pond.")])
    list(read_pairs(DataSection(path=str(run / "data.jsonl"), image_folder=value)))


PLACES: dict[str, Callable[[str, Path], Any]] = {
    "run.output": lambda value, _: RunFolder(value).stage("ingest").begin({}),
    "run.upstream": lambda value, run: RunFolder(str(run), upstream=value).stage("ingest").manifest(),
    **{f"data.path of {kind}": _reader(kind) for kind in ("sharegpt", "parquet", "webdataset", "huggingface")},
    "data.image_folder": _image_folder,
    "models": lambda value, _: resolve_model(value),
    "models, their fingerprint": lambda value, _: model_fingerprint(value),
    "engine.lora": lambda value, _: resolve_adapter(value),
    "models.adapted": lambda value, _: is_adapter(value),
    "evaluation.task": lambda value, _: list(TaskSource("evaluation.task", value).rows()),
    "mixture.replay.path": _replay,
    "seed": _seed,
    "conversations.caption_pool": _caption_pool,
    "report.labels": _labels,
    "publish --output": lambda value, _: storage.list_files(storage.resolve(value)) or storage.resolve(value).fs,
}
# where a folder of such a name, made here, is as good as any other
MAY_BE_FOLDERS = ("run.output", "run.upstream", "publish --output")


@pytest.mark.parametrize("place", PLACES)
def test_no_address_of_a_configuration_is_asked(
    tmp_path: Path, watched: tuple[int, list[str]], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, address in enumerate(hostile.addresses(watched[0])):
        if place in MAY_BE_FOLDERS and "://" not in address:
            continue
        with pytest.raises(AdamLLMError):
            PLACES[place](address, tmp_path / f"run{number}")
    assert watched[1] == []


@pytest.mark.parametrize("place", PLACES)
def test_locations_that_cannot_be_are_told_without_a_traceback(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in hostile.UNUSABLE.items():
        if place in MAY_BE_FOLDERS and name in ("long name", "nobody's home"):
            continue
        if not value and place in ("conversations.caption_pool", "report.labels", "seed", "data.image_folder"):
            continue  # there, nothing is nothing
        with pytest.raises(AdamLLMError) as caught:
            PLACES[place](value, tmp_path / "run")
        assert "hush" not in str(caught.value), name


URL_CLIENTS = {"urllib3", "requests", "httpx", "aiohttp", "ftplib", "http", "smtplib"}
URL_CLIENTS |= {"webdataset", "fsspec", "datasets"}
ALLOWED = {"data/s3.py": {"urllib3.exceptions", "urllib3.exceptions.ReadTimeoutError"}}


def test_nothing_in_the_package_can_fetch_a_url() -> None:
    """Clients of the store, of the hub and of Ray's job API speak to what the configuration names, and to nobody else.

    `submission` looks at errors of such packages (by importlib), and `s3` raises one.
    """
    for path in PACKAGE.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found = {name for name in names if name.split(".")[0] in URL_CLIENTS or name.startswith("urllib.request")}
        assert found <= ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set()), path


# A store that lies -------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)


def reached(endpoint: str, **options: Any) -> S3Section:
    return S3Section.model_validate(
        {"endpoint": endpoint, "region": "us-east-1", "attempts": 1, "request_timeout_s": 30.0, **options}
    )


def test_images_do_not_follow_a_store_elsewhere(keys: None) -> None:
    with trap() as (port, came), liar("redirect", f"http://127.0.0.1:{port}") as endpoint:
        with pytest.raises(OSError, match="sends every request elsewhere"):
            s3.fetch("runs/a.png", reached(endpoint), 1000)
        with pytest.raises(OSError, match="sends every request elsewhere"):
            list(s3.list_objects("runs/a", reached(endpoint)))
        assert came == []


@pytest.mark.xfail(strict=True, reason="Arrow's S3 client follows redirects, and pyarrow has no switch for it")
def test_tables_do_not_follow_a_store_elsewhere(keys: None) -> None:
    """What keeps this in is the network: the cluster's policies let pods reach the store and nothing else."""
    with trap() as (port, came), liar("redirect", f"http://127.0.0.1:{port}") as endpoint:
        filesystem = s3.filesystem("runs", reached(endpoint))
        filesystem.get_file_info("runs/a.parquet")
        assert came == []


@pytest.mark.parametrize(("how", "read"), [("huge", 10**10), ("endless", 1 << 16)])
def test_not_more_than_the_limit_is_read_of_an_image(keys: None, how: str, read: int) -> None:
    """Nothing is read when too much is announced; otherwise what there is, up to the limit and a piece."""
    with liar(how) as endpoint, pytest.raises(s3.TooManyBytes) as caught:
        s3.fetch("runs/a.png", reached(endpoint, request_timeout_s=5.0), 1 << 16)
    assert read <= caught.value.size <= read + s3._PIECE


def test_a_store_that_trickles_is_given_up(keys: None) -> None:
    """Each byte comes before any time-out; all of them would take 20 s, and more for a larger image."""
    with liar("trickle") as endpoint, pytest.raises(OSError, match="Read timeout"):
        s3.fetch("runs/a.png", reached(endpoint, request_timeout_s=1.0), 1 << 20)


def test_bytes_that_are_said_to_be_packed_are_not_unpacked(keys: None) -> None:
    with liar("gzip") as endpoint:
        assert len(s3.fetch("runs/a.png", reached(endpoint), 2000)) < 2000


def test_bytes_behind_the_announced_length_are_not_read(keys: None) -> None:
    with liar("more") as endpoint:
        assert s3.fetch("runs/a.png", reached(endpoint), 1000) == b"x" * 100
