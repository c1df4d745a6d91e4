"""An HTTP server that stands before another one and lets some requests go wrong: for tests of storage.

    with FaultProxy("http://127.0.0.1:5000") as proxy:
        proxy.plan = share_of(0.1, status(503))

Real bytes over real sockets. A plan sees (method, path without query, how often this pair was asked before) and names
a fault or None; as it depends on nothing else, threads may ask in any order.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """``status``: this answer at once. ``hang``: seconds before the connection is closed without an answer.

    ``cut``: break the connection after half of the body. ``short``: half of the body, and a header that says so.
    """

    status: int = 0
    hang: float = 0.0
    cut: bool = False
    short: bool = False


Plan = Callable[[str, str, int], Fault | None]
_CODES = {403: "ExpiredToken", 500: "InternalError", 503: "SlowDown"}
_HOP = {"connection", "transfer-encoding", "expect", "keep-alive", "content-length"}


def share_of(share: float, *faults: Fault, methods: str = "GET HEAD PUT POST DELETE") -> Plan:
    """Let this share of the requests go wrong, but no request more than three times in a row: pauses double."""

    def plan(method: str, path: str, times: int) -> Fault | None:
        digest = hashlib.sha256(f"{method} {path} {times}".encode()).digest()
        if method not in methods.split() or times % 4 == 3 or int.from_bytes(digest[:4], "big") >= share * 2**32:
            return None
        return faults[digest[4] % len(faults)]

    return plan


class FaultProxy:
    """The server; ``requests`` counts what came in, ``faults`` what went wrong."""

    def __init__(self, upstream: str) -> None:
        self.plan: Plan = lambda method, path, times: None
        self.upstream = urlsplit(upstream).netloc
        self.requests = self.faults = 0
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self, plan: Plan | None = None) -> None:
        """Forget the counts, and set another plan (none: everything works)."""
        with self._lock:
            self.plan = plan or (lambda method, path, times: None)
            self.requests = self.faults = 0
            self._asked.clear()

    def decide(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests += 1
            times = self._asked[method, path]
            self._asked[method, path] += 1
            fault = self.plan(method, path, times)
            self.faults += fault is not None
        return fault


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # whoever asked has been killed
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self) -> None:
        body = self._body()
        fault = self.proxy.decide(self.command, urlsplit(self.path).path) or Fault()
        if fault.status:
            code = _CODES.get(fault.status, "Error")
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self._answer(fault.status, [("Content-Type", "application/xml")], text, len(text))
            return
        status, headers, data = self._forward(body)
        if fault.hang:
            time.sleep(fault.hang)
            self.close_connection = True
            return
        length = next((int(v) for k, v in headers if k.lower() == "content-length"), len(data))
        if (fault.cut or fault.short) and len(data) > 1:
            data = data[: len(data) // 2]
            length = len(data) if fault.short else length
            self.close_connection = True
        self._answer(status, headers, data, length)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body)
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        return reply.status, reply.getheaders(), data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        try:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle
