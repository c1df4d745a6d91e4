"""KubeRay's custom resources as an API server treats them: defaults filled in, then a strict check against the schema.

Folder of the definitions: ADAMLLM_KUBERAY_CRDS, or the copy in ``crds/``. Files: ``ray.io_*.yaml``, plain or ``.gz``.
"""

from __future__ import annotations

import copy
import gzip
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

HERE = Path(__file__).parent / "crds"


@cache
def definitions() -> dict[tuple[str, str], dict[str, Any]]:
    """Schema by (apiVersion, kind). Skips the test that asks where there are none."""
    folder = Path(os.environ.get("ADAMLLM_KUBERAY_CRDS") or HERE)
    files = sorted([*folder.glob("ray.io_*.yaml"), *folder.glob("ray.io_*.yaml.gz")])
    if not files:
        pytest.skip(f"no ray.io_*.yaml in {folder}: set ADAMLLM_KUBERAY_CRDS to KubeRay's helm-chart/.../crds folder")
    found = {}
    for file in files:
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            found[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = schema
    return found


def completed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A copy with the defaults of the schema, as the API server stores it."""
    return _with_defaults(copy.deepcopy(manifest), definitions()[manifest["apiVersion"], manifest["kind"]])


def _with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
            if key in value:
                value[key] = _with_defaults(value[key], inner)
    elif isinstance(value, list) and "items" in schema:
        return [_with_defaults(each, schema["items"]) for each in value]
    return value


@cache
def _validator(kind: tuple[str, str]) -> Draft202012Validator:
    return Draft202012Validator(_strict(definitions()[kind]))


def _strict(schema: Any) -> Any:
    """As JSON schema: a name or a number where Kubernetes takes either, and no field that the schema does not know."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    known = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    if known and "additionalProperties" not in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def errors(manifest: dict[str, Any]) -> list[str]:
    """What the API server would refuse of a RayCluster or RayJob but its metadata, as ``path: message``."""
    kind = (manifest["apiVersion"], manifest["kind"])
    bare = completed(manifest) | {"metadata": {}}
    return [f"{'.'.join(map(str, each.path))}: {each.message[:200]}" for each in _validator(kind).iter_errors(bare)]
