"""A row that takes more memory than there is, and Ray's own guard of the machine's memory. Real Ray, fake engine.

Nothing else may run meanwhile (make faults): the guard looks at the whole machine, and kills here for what others take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from adamllm_ray.synthesis.pipeline import synthesize
from tests.synthesis.deaths import Job, quick_ray
from tests.synthesis.fakes import asked_rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
GIB = 1 << 30


@pytest.fixture
def memory_to_take() -> Iterator[int]:
    """A Ray that kills when this machine has a few GiB less than now; how much a process must take for that."""
    memory = psutil.virtual_memory()
    room = min(3 * GIB, memory.available // 4)
    if room < 2 * GIB:
        pytest.skip("needs 8 GiB of free memory, so that nothing else on this machine is in danger")
    limit = (memory.total - memory.available + room) / memory.total
    with quick_ray(RAY_memory_usage_threshold=f"{limit:.4f}", RAY_memory_monitor_refresh_ms="100"):
        yield 2 * room


def test_a_row_that_takes_all_memory(memory_to_take: int, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> None:
    """Ray's own guard kills who took it last, and perhaps who is beside it."""
    work = Job(tmp_path, tiny_vlm, tiny_judge, 40)
    hungry = work.ids[22]
    maker = replace(work.maker, hungry=hungry, most_bytes=memory_to_take)
    manifest = synthesize(work.config, work.run, engine_maker=maker)
    assert manifest.verdicts == {"kept": 39, "engine_died": 1}
    assert work.kept().keys() == {*work.ids} - {hungry}
    assert asked_rows(maker.log).count(hungry) == 3
