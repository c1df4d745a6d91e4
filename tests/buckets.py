"""An S3 server for tests (moto), reached through the environment as a user would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def local_bucket(address: str = "127.0.0.1") -> Iterator[Any]:
    """A bucket on a local S3 server that the environment points at. ``address``: one of this machine's."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    wanted = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "NO_PROXY": f"127.0.0.1,{address}",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    made = boto3.resource("s3", endpoint_url=wanted["AWS_ENDPOINT_URL"], region_name="us-east-1").Bucket("runs")
    made.create()
    yield made
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
