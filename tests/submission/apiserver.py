"""Enough of a Kubernetes API server for `adamllm submit`: ConfigMaps and RayJobs in memory, over HTTP, and an operator
that walks a RayJob through states that the test gives.

A seam: it proves what our requests say and how answers are read, by the real kubectl and the real Python client. It
knows nothing of schemas, admission or pods; tests/cluster checks the objects against the schemas.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RESOURCES = {
    "/api/v1": [("configmaps", "ConfigMap")],
    "/apis/ray.io/v1": [("rayjobs", "RayJob")],
}
_OBJECT = re.compile(r"(/api/v1|/apis/ray\.io/v1)/namespaces/([^/?]+)/([^/?]+)(?:/([^/?]+))?")


class ApiServer:
    """Objects by (resource, namespace, name). ``states`` are given to a RayJob one after the other as it is read."""

    def __init__(self, states: list[dict[str, Any]] | None = None) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.states = list(states or [])
        self.calls: list[str] = []
        self.created: list[str] = []  # path and query of each POST
        self.refuse_patches = False
        self.refuse: dict[str, tuple[int, str, str]] = {}  # of a resource: code, reason and message for its POST
        self.url = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = _OBJECT.match(path)
        if found is None:
            return self._discovery(path.partition("?")[0])
        _, namespace, resource, name = found.groups()
        self.calls.append(f"{method} {resource}")
        if method == "POST":
            self.created.append(path)
            return self._create(resource, namespace, body)
        here = self.objects.get((resource, namespace, name))
        if here is None:
            return status(404, "NotFound", f'{resource} "{name}" not found')
        if method == "PATCH" and self.refuse_patches:
            return status(403, "Forbidden", "no patches")
        if method == "PATCH":
            here["metadata"] |= body["metadata"]
        elif method == "DELETE":
            del self.objects[resource, namespace, name]
        elif resource == "rayjobs" and self.states:
            here["status"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return 200, here

    def _create(self, resource: str, namespace: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if resource in self.refuse:
            return status(*self.refuse[resource])
        key = (resource, namespace, body["metadata"]["name"])
        if key in self.objects:
            return status(409, "AlreadyExists", f"{key[2]} already exists")
        body["metadata"] |= {"uid": f"uid-{len(self.objects)}", "namespace": namespace}
        self.objects[key] = body
        return 201, body

    def _discovery(self, path: str) -> tuple[int, dict[str, Any]]:
        if path in RESOURCES:
            names = [
                {"name": plural, "kind": kind, "namespaced": True, "verbs": ["get", "create", "patch", "delete"]}
                for plural, kind in RESOURCES[path]
            ]
            group = path.removeprefix("/apis/").removeprefix("/api/")
            return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": names}
        version = {"groupVersion": "ray.io/v1", "version": "v1"}
        known: dict[str, dict[str, Any]] = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [{"name": "ray.io", "versions": [version], "preferredVersion": version}],
            },
            "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
            "/openapi/v3": {"paths": {each[1:]: {"serverRelativeURL": f"/openapi/v3{each}"} for each in RESOURCES}},
            **{f"/openapi/v3{each}": openapi(each) for each in RESOURCES},
        }
        return (200, known[path]) if path in known else status(404, "NotFound", path)

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig that leads here."""
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "me", "user": {}}],
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
                    "current-context": "fake",
                }
            )
        )
        return path


def openapi(version: str) -> dict[str, Any]:
    """What kubectl looks up before it leaves the checking of fields to the server."""
    group = "ray.io" if "ray.io" in version else ""
    paths = {
        f"{version}/namespaces/{{namespace}}/{plural}": {
            method: {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "x-kubernetes-group-version-kind": {"group": group, "version": "v1", "kind": kind},
                "responses": {"200": {"description": "OK"}},
            }
            for method in ("post", "patch")
        }
        for plural, kind in RESOURCES[version]
    }
    return {"openapi": "3.0.0", "info": {"title": "fake", "version": "1"}, "paths": paths}


def status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    """Kubernetes' way to refuse."""
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
    return code, {**said, "code": code}


@contextmanager
def serving(server: ApiServer) -> Iterator[ApiServer]:
    """Answer on a port of this machine for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = json.loads(self.rfile.read(length) or b"{}") if length else {}
            code, answer = server.answer(self.command, self.path, sent)
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
