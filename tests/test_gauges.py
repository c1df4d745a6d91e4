"""The driver's gauges: each is set by the code that knows its value, and comes out of Ray's metrics endpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from adamllm_ray import gauges, progress
from adamllm_ray.synthesis import watch
from adamllm_ray.training.trackers import scalars
from tests.scraping import local_ray, names, samples

STEP = {
    "loss": 1.5,
    "kinds": {"caption": (1.25, 7)},
    "lr": 1e-4,
    "grad_norm": 0.5,
    "seconds": 0.4,
    "waited": 0.1,
    "inputs": 1000,
    "examples": 8,
    "padding": 0.25,
    "mfu": 0.4,
}
Shown = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """(name, labels) -> value of every gauge that is set, as if this process were in Ray."""
    found: Shown = {}

    def gauge(name: str, _words: str, keys: tuple[str, ...]) -> Any:
        def set_(value: float, tags: dict[str, str]) -> None:
            assert tags.keys() == set(keys), name
            found[name, frozenset(tags.items())] = value

        return SimpleNamespace(set=set_)

    monkeypatch.setattr(gauges, "in_ray", lambda: True)
    monkeypatch.setattr(gauges, "_made", {})
    monkeypatch.setattr("ray.util.metrics.Gauge", gauge)
    return found


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"adamllm_{name}", frozenset(labels.items())


def a_stage() -> None:
    with progress.task("synthesize", 10) as task:
        task.update(4)


def a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch.Look(5, None, None, {"kept": 3, "judged_open": 1, "engine_error": 1}, 5)
    stage = SimpleNamespace(place=SimpleNamespace(local=True))
    monkeypatch.setattr(watch, "Watch", lambda _: SimpleNamespace(look=lambda: seen))
    with watch.shown(stage, "synthesize", 10):  # type: ignore[arg-type]
        pass


def test_progress_and_verdicts_of_a_stage(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    a_stage()
    assert shown == {of("stage_done", stage="synthesize"): 4, of("stage_total", stage="synthesize"): 10}
    a_look(monkeypatch)
    assert shown[of("stage_done", stage="synthesize")] == 5
    assert shown[of("stage_rows", stage="synthesize", verdict="kept", outcome="kept")] == 3
    assert shown[of("stage_rows", stage="synthesize", verdict="engine_error", outcome="failed")] == 1


def test_curves_of_a_training(shown: Shown) -> None:
    gauges.show_training(scalars(STEP))
    assert shown[of("training_loss")] == 1.5
    assert shown[of("training_kind_loss", kind="caption")] == 1.25
    assert shown[of("training_tokens_per_second")] == 2000
    assert shown[of("training_mfu")] == 0.4


def test_an_unknown_device_has_no_mfu(shown: Shown) -> None:
    gauges.show_training(scalars(STEP | {"mfu": None}))
    assert of("training_mfu") not in shown


def test_every_gauge_is_set_by_something(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    a_stage()
    a_look(monkeypatch)
    gauges.show_training(scalars(STEP))
    assert {name for name, _ in shown} == {gauges.PREFIX + name for name in gauges.GAUGES}


def test_outside_of_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "in_ray", lambda: False)
    monkeypatch.setattr(gauges, "_made", {})  # an earlier test of this process may have made some
    gauges.show("stage_done", 1, stage="ingest")
    assert not gauges._made


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_they_come_out_of_ray_also_when_a_run_connects_twice() -> None:
    """`adamllm run` connects to Ray anew for every stage, and starts a Ray of its own each time on a laptop."""
    wanted = {f"ray_{gauges.PREFIX}{name}" for name in gauges.GAUGES}
    for round_ in (1, 2):
        with local_ray():
            gauges.show("stage_rows", round_, stage="synthesize", verdict="kept", outcome="kept")
            with progress.task("train", 10) as task:
                task.update(round_)
            gauges.show_training(scalars(STEP))
            found = samples(lambda found: names(found) >= wanted)
        assert names(found) >= wanted
        assert [s.value for s in found if s.name == "ray_adamllm_stage_done"] == [round_]
        assert {s.labels["stage"] for s in found if s.name == "ray_adamllm_stage_rows"} == {"synthesize"}
