"""The image folder: every way out of it is closed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data.sources import ImageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused
from tests import hostile
from tests.data.sources.reading import PNG

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]


@pytest.fixture
def vault(tmp_path: Path) -> ImageFolder:
    """An image folder with a secret beside it, and every kind of way out."""
    images = tmp_path / "images"
    hostile.write_folder(images / "sub", {"b.png": PNG}, [])
    (images / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "images-other").mkdir()
    (tmp_path / "images-other" / "c.png").write_bytes(PNG)
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "way").symlink_to(tmp_path)
    (images / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (images / "inside.png").symlink_to(images / "a.png")
    os.mkfifo(images / "pipe.png")
    return ImageFolder(str(images), 10_000)


@pytest.mark.parametrize("name", ["a.png", "sub/b.png", "sub/../a.png", "./a.png", "inside.png"])
def test_paths_inside(vault: ImageFolder, name: str) -> None:
    assert vault.read(name) == PNG


def test_absolute_path_inside(vault: ImageFolder, tmp_path: Path) -> None:
    assert vault.read(str(tmp_path / "images" / "a.png")) == PNG


HOSTILE_PATHS = [
    "../secret.png",
    "sub/../../secret.png",
    "link.png",
    "way/secret.png",
    "../images-other/c.png",
    "{tmp}/secret.png",
    "{tmp}/images/../secret.png",
    "/etc/passwd",
    "~/secret.png",
    "file://{tmp}/secret.png",
    "http://127.0.0.1:1/a.png",
    "https://169.254.169.254/latest",
    "s3://bucket/a.png",
    "data:image/png;base64,AAAA",
    "a\0.png",
    "",
    ".",
    "sub",
    "pipe.png",
    "dangling.png",
    "missing.png",
    "a.png/b.png",
    "x" * 5000,
    "\ud800.png",
]


@pytest.mark.parametrize("name", HOSTILE_PATHS, ids=lambda name: ascii(name)[:30])
def test_no_way_out(vault: ImageFolder, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real_open = os.open

    def spy(path: str, *rest: Any, **options: Any) -> int:
        opened.append(os.path.realpath(path))
        return real_open(path, *rest, **options)

    monkeypatch.setattr(os, "open", spy)
    with pytest.raises(ImageRefused) as caught:
        vault.read(name.replace("{tmp}", str(tmp_path)))
    assert caught.value.verdict is Verdict.IMAGE_MISSING
    assert caught.value.detail
    assert all(path.startswith(str(tmp_path / "images") + "/") for path in opened if "png" in path or "etc" in path)


def test_large_file_is_not_read(vault: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "images" / "large.png").write_bytes(b"x" * 10_001)
    with pytest.raises(ImageRefused) as caught:
        vault.read("large.png")
    assert caught.value.verdict is Verdict.IMAGE_TOO_MANY_BYTES


def test_a_file_that_grows_is_read_up_to_the_limit(
    vault: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability test 26: bytes read never pass the limit, whatever the file's size was said to be."""
    (tmp_path / "images" / "growing.png").write_bytes(b"x" * 50_000)
    real = os.fstat

    def small(handle: int) -> os.stat_result:
        found = list(real(handle))
        found[6] = 100  # st_size
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", small)
    assert len(vault.read("growing.png")) == 10_000
