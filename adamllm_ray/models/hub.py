"""Copy a finished model, or a published data set, to a Hugging Face hub, when somebody says so: no stage ever does.

    HF_TOKEN=... adamllm push CONFIG --repo org/name
    HF_TOKEN=... adamllm publish CONFIG --output DIR --repo org/name

Of a data set the files go that `publish` wrote. Of a model goes ``train/model`` exactly as its manifest signs it:
weights, processor, and the model card, which holds no path and no record. The repository is made private; one that is
public already is refused unless that was asked for.
HF_ENDPOINT names another hub. Tested against a server of our own that answers like one, never against the real one.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adamllm_ray.config import S3Section
from adamllm_ray.data import storage, transfer
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.errors import ConfigError, ModelError, StorageError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where it is now, and how much of it."""

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
    token = check_repository(repository)
    stage = run.stage("train")
    manifest = stage.manifest()
    if manifest is None:
        raise ModelError(f"there is no trained model in {stage.uri}: run `adamllm train` with this configuration first")
    if problems := verify(stage):
        raise StorageError(f"the model is not as it was written, nothing was sent: {problems[0]}")
    files = [entry for entry in manifest.files if entry["path"].startswith("model/")]
    names = [entry["path"].removeprefix("model/") for entry in files]
    with _local(stage.place.child("model"), names) as folder:
        url = _upload(folder, names, _Target(repository, "model", private), token)
    return Pushed(url, len(files), sum(entry["bytes"] for entry in files))


def push_dataset(
    output: str, files: Sequence[str], repository: str, s3: S3Section | None = None, *, private: bool = True
) -> Pushed:
    """Upload the published data set in ``output`` to ``org/name``. Raises as `push`."""
    token = check_repository(repository)
    place = storage.resolve(output, s3)
    sizes = dict(storage.list_files(place))
    with _local(place, files) as folder:
        url = _upload(folder, list(files), _Target(repository, "dataset", private), token)
    return Pushed(url, len(files), sum(sizes[name] for name in files))


def check_repository(repository: str) -> str:
    """The token to push to it with. Raises ConfigError: no such name, no HF_TOKEN, or HF_HUB_OFFLINE is set."""
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--repo {repository!r} is not org/name")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing is sent anywhere; unset it to push")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ConfigError("HF_TOKEN is not set: pushing needs a token with write access, in the environment only")
    return token


@dataclass(frozen=True, slots=True)
class _Target:
    repository: str
    kind: Literal["model", "dataset"]
    private: bool


def _upload(folder: str, names: list[str], target: _Target, token: str) -> str:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    name, kind = target.repository, target.kind
    try:
        api.create_repo(name, repo_type=kind, private=target.private, exist_ok=True)
        if target.private and not api.repo_info(name, repo_type=kind).private:
            raise ConfigError(f"{name} is public; give --public if the {kind} may be seen by everybody")
        done = api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=names,
            commit_message=f"{kind.capitalize()} by adamllm_ray",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"the hub did not take the {kind}: {' '.join(str(error).split())[:500]}") from error
    return str(done.commit_url)


@contextmanager
def _local(place: storage.Location, names: Sequence[str]) -> Iterator[str]:
    """The folder itself where it is on this disk, a copy of these files of it otherwise."""
    if place.local:
        yield place.path
        return
    with tempfile.TemporaryDirectory() as folder:
        with storage.storage_errors("fetch what is to be sent", place.uri):
            transfer.download(place, Path(folder), names)
        yield folder
