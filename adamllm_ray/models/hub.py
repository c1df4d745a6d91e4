"""Copy a finished model to a Hugging Face hub, when somebody says so: no stage and no `run` ever does.

    HF_TOKEN=... adamllm push CONFIG --repo org/name

What goes is ``train/model`` exactly as its manifest signs it: weights, processor, and the model card, which holds no
path and no record. The repository is made private; one that is public already is refused unless that was asked for.
HF_ENDPOINT names another hub. Tested against a server of our own that answers like one, never against the real one.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyarrow import fs as pafs

from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.errors import ConfigError, ModelError, StorageError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where the model is now, and how much of it."""

    url: str
    files: int
    bytes: int


def push(run: RunFolder, repository: str, *, private: bool = True) -> Pushed:
    """Upload the run's trained model to ``org/name``, made if it does not exist.

    Raises:
        ConfigError: no such name, no HF_TOKEN, HF_HUB_OFFLINE is set, or the repository is public against the wish.
        ModelError: there is no trained model, or the hub refuses.
        StorageError: the model's files are not those that its manifest signs.
    """
    token = _token(repository)
    stage = run.stage("train")
    manifest = stage.manifest()
    if manifest is None:
        raise ModelError(f"there is no trained model in {stage.uri}: run `adamllm train` with this configuration first")
    if problems := verify(stage):
        raise StorageError(f"the model is not as it was written, nothing was sent: {problems[0]}")
    files = [entry for entry in manifest.files if entry["path"].startswith("model/")]
    names = [entry["path"].removeprefix("model/") for entry in files]
    with _local(stage.place.child("model")) as folder:
        url = _upload(folder, names, repository, token, private=private)
    return Pushed(url, len(files), sum(entry["bytes"] for entry in files))


def _token(repository: str) -> str:
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--repo {repository!r} is not org/name")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing is sent anywhere; unset it to push")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ConfigError("HF_TOKEN is not set: pushing needs a token with write access, in the environment only")
    return token


def _upload(folder: str, names: list[str], repository: str, token: str, *, private: bool) -> str:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise ConfigError(f"{repository} is public; give --public if the model may be seen by everybody")
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=names, commit_message="Model by adamllm_ray"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"the hub did not take the model: {' '.join(str(error).split())[:500]}") from error
    return str(done.commit_url)


@contextmanager
def _local(place: storage.Location) -> Iterator[str]:
    """The folder itself where it is on this disk, a copy of it otherwise."""
    if place.local:
        yield place.path
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(place.path, folder, source_filesystem=place.fs)
        yield folder
