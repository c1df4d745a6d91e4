"""One driver per run folder on S3: a real server, real processes, real kills. (The lock on disk: test_run.py.)"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.data import locks, s3
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import RunLocked, StorageError
from tests.faulty import Fault, FaultProxy

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HOLDER = """
import sys, time
from adamllm_ray.data.run import RunFolder
with RunFolder(sys.argv[1], lease_s=float(sys.argv[2])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def holder(uri: str, lease_s: float) -> subprocess.Popen[str]:
    """Another driver, holding the lock."""
    other = subprocess.Popen([sys.executable, "-c", HOLDER, uri, str(lease_s)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def stranger(bucket: Any, name: str, lease_s: float = 2.0) -> None:
    """A lock left behind by a driver of another machine."""
    owner = {"pid": 7, "host": "node-3", "machine": "elsewhere", "born": "1", "lease_s": lease_s}
    bucket.put_object(Key=f"{name}/.lock", Body=json.dumps(owner).encode())


def test_the_second_driver_is_refused_and_the_first_is_named(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A living owner shows itself by its next renewal, long before its lease is over."""
    other = holder("s3://runs/two", 8)
    started = time.monotonic()
    try:
        with pytest.raises(RunLocked, match=rf"in use by process {other.pid} on .*, which is alive"):
            RunFolder("s3://runs/two", lease_s=8.0).lock().__enter__()
        assert time.monotonic() - started < 8
        assert f"locked by process {other.pid} on" in capsys.readouterr().err
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with RunFolder("s3://runs/two").lock():  # the dead of this machine are recognised at once
        pass
    assert capsys.readouterr().err == ""
    assert [item.key for item in bucket.objects.filter(Prefix="two/")] == []


def test_only_one_of_many_gets_it(bucket: Any) -> None:
    results: list[str] = []
    barrier = threading.Barrier(8)
    done = threading.Event()

    def contend() -> None:
        folder = RunFolder("s3://runs/many", lease_s=4.0)
        barrier.wait()
        try:
            with folder.lock():
                results.append("held")
                done.wait(30)
        except RunLocked:
            results.append("refused")
            if results.count("refused") == 7:
                done.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 7


def test_a_lock_left_behind_is_waited_for(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The last driver was another pod's: its process cannot be looked for, so its lease has to run out."""
    other = holder("s3://runs/left", 3)
    other.send_signal(signal.SIGKILL)
    other.wait()
    owner = json.loads(bucket.Object("left/.lock").get()["Body"].read())
    assert locks._dead(owner)
    owner["machine"] = owner["machine"].rpartition(" ")[0] + " pid:[1]"
    bucket.put_object(Key="left/.lock", Body=json.dumps(owner).encode())
    started = time.monotonic()
    with RunFolder("s3://runs/left", lease_s=3.0).lock():
        assert 1.5 < time.monotonic() - started < 8
    said = capsys.readouterr().err
    assert f"locked by process {other.pid} on" in said
    heard, left = map(int, re.findall(r"last heard of (\d+) s ago.* sign of life, (\d+) s at most", said)[0])
    assert heard + left == 4  # the lease and a second; the server's clock has whole ones, and may have gone on by one


def test_a_lock_that_is_given_back_meanwhile_is_taken(bucket: Any) -> None:
    stranger(bucket, "back", lease_s=60)
    threading.Timer(1.0, lambda: bucket.Object("back/.lock").delete()).start()
    with RunFolder("s3://runs/back", lease_s=8.0).lock():
        assert json.loads(bucket.Object("back/.lock").get()["Body"].read())["pid"] == os.getpid()


def test_a_longer_lease_than_ours_is_not_waited_for(bucket: Any) -> None:
    stranger(bucket, "long", lease_s=60)
    with pytest.raises(RunLocked, match=r"process 7 on node-3, .* can be taken in 5\d s, at \d\d:\d\d"):
        RunFolder("s3://runs/long", lease_s=1.0).lock().__enter__()


def test_this_machines_clock_does_not_matter(bucket: Any) -> None:
    """Reliability test 42: an hour back or forth on our side neither frees nor keeps a lock."""
    stranger(bucket, "clock", lease_s=60)
    for jump in (-3600, 3600):
        code = f"import time; real = time.time; time.time = lambda: real() + {jump}\n{HOLDER}"
        other = subprocess.run([sys.executable, "-c", code, "s3://runs/clock", "1"], capture_output=True, check=False)
        assert b"RunLocked" in other.stderr
        assert b"process 7 on node-3" in other.stderr


def test_the_lock_is_renewed(bucket: Any) -> None:
    with RunFolder("s3://runs/renewed", lease_s=1.0).lock():
        first = bucket.Object("renewed/.lock").e_tag
        time.sleep(2.0)
        assert bucket.Object("renewed/.lock").e_tag != first
        with pytest.raises(RunLocked):
            RunFolder("s3://runs/renewed", lease_s=1.0).lock().__enter__()


def test_a_driver_that_lost_its_lock_is_stopped(bucket: Any) -> None:
    def work() -> None:
        with RunFolder("s3://runs/lost", lease_s=1.0).lock():
            stranger(bucket, "lost")
            time.sleep(30)

    with pytest.raises(RunLocked, match="taken over by another process"):
        work()
    assert json.loads(bucket.Object("lost/.lock").get()["Body"].read())["host"] == "node-3", "it is not ours to delete"


def test_a_driver_that_cannot_renew_is_stopped(bucket: Any) -> None:
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        section = parse_config(
            {
                "run": {
                    "output": "s3://runs/cut-off",
                    "s3": {"endpoint": proxy.url, "region": "us-east-1", "attempts": 1},
                    "s3_lease_s": 1.0,
                }
            }
        ).run

        def work() -> None:
            with RunFolder.of(section).lock():
                proxy.plan = lambda method, path, times: Fault(status=503)
                time.sleep(30)

        with pytest.raises(RunLocked, match="could not be renewed for 1 s"):
            work()


def test_an_answer_that_got_lost_does_not_lock_us_out(bucket: Any) -> None:
    """The put arrives, its answer does not, boto3 tries again and is refused by our own object."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        options = s3.S3Section(endpoint=proxy.url, region="us-east-1", request_timeout_s=1.0)
        proxy.plan = lambda method, path, times: Fault(hang=1.5) if method == "PUT" and not times else None
        with RunFolder("s3://runs/answer", options).lock():
            assert proxy.faults == 1


def test_damaged_lock_counts_as_fresh(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.put_object(Key="damaged/.lock", Body=b"\xff not json")
    started = time.monotonic()
    with RunFolder("s3://runs/damaged", lease_s=3.0).lock():
        assert time.monotonic() - started > 1.5
    assert "locked by process ? on ?" in capsys.readouterr().err


def test_a_store_without_conditional_writes(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    client = s3.client(s3.S3Section())

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")

    monkeypatch.setattr(client, "put_object", refuse)
    with pytest.raises(StorageError, match=r"set run\.s3_lock to false"):
        RunFolder("s3://runs/plain").lock().__enter__()
    with RunFolder("s3://runs/plain", s3_lock=False).lock():
        pass


def test_dead_and_living_processes_are_told_apart() -> None:
    me = locks._self()
    assert not locks._dead(me)
    assert locks._dead({**me, "born": "1"}), "the number was given to a newer process"
    assert not locks._dead({**me, "machine": "elsewhere", "born": "1"})
    assert not locks._dead({})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert locks._dead({**me, "pid": gone.pid})
