"""Whole lives of drivers that take minutes: many deaths in a row, repeated rows, planted keys. Fake engine, real Ray.

make faults    or    pytest -m faults tests/faults
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.synthesis.deaths import BLOCK, IN_FLIGHT_EVERYWHERE, SMALL
from tests.synthesis.fakes import circles, write_ingest
from tests.synthesis.lives import Life, Runs, short_folder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]
PACE = 0.05  # seconds per row at the engine


@pytest.fixture
def runs(tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> Iterator[Runs]:
    with short_folder() as folder:
        yield Runs(tmp_path / "run", tiny_vlm, tiny_judge, folder, SMALL)


def finished(runs: Runs) -> dict[str, int]:
    """The verdicts that the last life prints, when it ended well."""
    life = runs.start()
    code, out = life.end()
    assert code == 0, life.errors.read_text()[-3000:]
    verdicts: dict[str, int] = json.loads(out)
    return verdicts


def test_twenty_deaths_and_starts_at_once(runs: Runs) -> None:
    """Reliability test 2: each start meets the orphans of the last; none of them writes a row late. 20 of 20."""
    rows, deaths = 400, 20
    write_ingest(runs.run, circles(rows))
    ids, done = runs.run.stage("ingest").row_ids(), [0]
    lives: list[Life] = []
    for _ in range(deaths):
        life = runs.start(seconds_per_row=PACE)
        life.wait_until(lambda: runs.committed() > done[-1])
        life.kill()
        lives.append(life)
        done.append(runs.committed())
        if done[-1] > rows - 10 * BLOCK:
            break  # the rest would end before it can be killed
    assert finished(runs) == {"kept": rows}
    assert sorted(runs.run.stage("synthesize").row_ids()) == sorted(ids)  # raises when one is there twice
    for life, before, after in zip(lives, done, done[1:], strict=False):
        asked = life.asked()
        assert len(asked) == len(set(asked)) <= rows - before
        assert len(asked) - (after - before) <= IN_FLIGHT_EVERYWHERE
    assert len(lives) >= 10, "too few of them could be killed"


def test_repeated_rows_are_not_taken_for_finished_ones(runs: Runs) -> None:
    """Reliability test 30: one row in a hundred is a repetition, with an id of its own; killed and resumed, all stay.

    Ray's ledger holds ids: two rows of one id would be one row after a resume.
    """
    rows = circles(200)
    for number in range(0, 200, 100):
        rows[number + 1] = {**rows[number], "verdict": "duplicate"}
    write_ingest(runs.run, rows)
    life = runs.start(seconds_per_row=PACE)
    life.wait_until(lambda: runs.committed() >= 0.4 * len(rows))
    life.kill()
    assert finished(runs) == {"kept": 198, "not_synthesized": 2}
    assert sorted(runs.run.stage("synthesize").row_ids()) == sorted(runs.run.stage("ingest").row_ids())


PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED000000000",
    "AWS_SECRET_ACCESS_KEY": "planted/SECRET+0123456789abcdefghijklmnop",
    "AWS_SESSION_TOKEN": "planted-session-token-0123456789",
    "HF_TOKEN": "hf_plantedplantedplantedplantedplanted",
    "WANDB_API_KEY": "planted0123456789abcdef0123456789abcdef01",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-0123456789",
}


def test_planted_keys_are_nowhere(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reliability test 60: in no file of the run folder and in no log of Ray, also when the driver was killed."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    write_ingest(runs.run, circles(60))
    life = runs.start(seconds_per_row=PACE)
    life.wait_until(lambda: runs.committed() >= 20)
    life.kill()
    assert finished(runs) == {"kept": 60}
    files = [path for root in (runs.output, runs.ray_folder) for path in root.rglob("*") if path.is_file()]
    assert sum(path.suffix in (".log", ".out", ".err") for path in files) > 10
    keys = [value.encode() for value in PLANTED.values()]
    found = [str(path) for path in files if any(key in path.read_bytes() for key in keys)]
    assert found == []
