"""Servers that nobody should speak to, or believe: a trap that counts who came, and an S3 store that lies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """A server of this machine, for the length of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def trap() -> Iterator[tuple[int, list[str]]]:
    """(port, requests that came) of a server that has what every thief wants."""
    came: list[str] = []

    class Handler(_Quiet):
        def do_GET(self) -> None:
            came.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"SECRET")

        do_HEAD = do_POST = do_PUT = do_GET

    with serving(Handler) as server:
        yield server.server_port, came


@contextmanager
def liar(how: str, elsewhere: str = "") -> Iterator[str]:
    """Address of a store that gives every object in a wrong way.

    ``redirect``: it is at ``elsewhere``. ``huge``: 10 GB are announced. ``endless``: no length is, and it never ends.
    ``trickle``: a byte now and then. ``gzip``: 1 MB of zeros, packed, said to be packed. ``more``: 100 bytes announced,
    100,000 sent.
    """

    class Handler(_Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(OSError):
                getattr(self, f"_{how}")()
            self.close_connection = True

        do_HEAD = do_GET

        def _head(self, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Connection": "close"}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def _redirect(self) -> None:
            self._head(307, Location=f"{elsewhere}{self.path}", Content_Length="0")

        def _huge(self) -> None:
            self._head(Content_Length=str(10**10))
            self.wfile.write(b"x" * 100_000)

        def _endless(self) -> None:
            self._head(Transfer_Encoding="chunked")
            while True:
                self.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

        def _trickle(self) -> None:
            self._head(Content_Length="1000")
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.02)

        def _gzip(self) -> None:
            import gzip

            packed = gzip.compress(b"\0" * 1_000_000)
            self._head(Content_Length=str(len(packed)), Content_Encoding="gzip")
            self.wfile.write(packed)

        def _more(self) -> None:
            self._head(Content_Length="100")
            self.wfile.write(b"x" * 100_000)

    with serving(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}"
