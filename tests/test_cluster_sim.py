"""The simulation behind docs/sizing.md: sums that can be checked by hand, and what real Ray did. No Ray here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cluster_sim
from benchmarks.cluster_sim import PAPER, Costs, checked_loop, checked_scale, job_for
from benchmarks.simulated_synthesis import Job, Lengths, Replica, Replicas, Synthesis, placed
from benchmarks.simulated_training import DAY, Training

pytestmark = pytest.mark.timeout(120)

EVEN = Lengths(10.0, sigma=0.0)
COSTS = Costs(PAPER["synthesizer_seconds"], PAPER["judge_seconds"], 0.02, 180.0, 300.0)


def even(synthesizers: int, judges: int, rows: int = 6400, **more: float) -> Job:
    """16 slots of 10 s: 1.6 rows/s of a synthesizer, eight times as many of a judge."""
    judge = Replicas(judges, Lengths(1.25, sigma=0.0), 16)
    return replace(Job(rows, Replicas(synthesizers, EVEN, 16), judge, 16, driver_s=0.0, write_s=0.0), **more)


def test_full_replicas_take_as_long_as_their_rows():
    found = Synthesis(even(4, 1)).run()
    assert found.seconds == pytest.approx(6400 / (4 * 1.6), rel=0.01)
    assert (found.asked_again, found.losses) == (0, 0)
    assert found.first_row_s == pytest.approx(11.25)
    assert found.idle[0] == pytest.approx(0, abs=0.01)
    assert found.gpu_hours == pytest.approx(5 * found.seconds / 3600)
    assert found.goodput == pytest.approx((4 + 0.5) / 5, rel=0.01)  # the judge is half idle


def test_the_slower_step_bounds_the_run():
    fast = Replicas(4, Lengths(1.0, sigma=0.0), 16)
    found = Synthesis(replace(even(4, 1), synthesizers=fast)).run()
    assert found.steady_rows_per_s == pytest.approx(16 / 1.25, rel=0.02)
    driven = Synthesis(even(4, 1, driver_s=5.0)).run()
    assert driven.steady_rows_per_s == pytest.approx(16 / 5.0, rel=0.02)
    assert driven.driver_busy > 0.95
    slow_disk = Synthesis(even(4, 1, write_s=20.0, writers=2)).run()
    assert slow_disk.steady_rows_per_s == pytest.approx(2 * 16 / 20.0, rel=0.02)
    slow_cpu = Synthesis(replace(even(4, 1), synthesizers=Replicas(4, EVEN, 16, prepare_s=1.0))).run()
    assert slow_cpu.rows_per_s == pytest.approx(4 * 1.0, rel=0.02)


def test_machines_are_waited_for_and_paid_from_the_moment_they_are_there():
    quick, late = Synthesis(even(4, 1)).run(), Synthesis(even(4, 1, start_s=60.0, provision_s=100.0)).run()
    assert late.seconds == pytest.approx(quick.seconds + 160)
    assert late.gpu_hours == pytest.approx(quick.gpu_hours + 5 * 60 / 3600)


def test_lengths_have_their_mean_and_a_tail_leaves_slots_idle_at_the_end():
    import numpy as np

    drawn = Lengths(92.0).draw(np.random.default_rng(0), 50_000)
    assert mean(drawn) == pytest.approx(92.0, rel=0.02)
    assert max(drawn) / mean(drawn) == pytest.approx(3.47, rel=0.01)
    pool = Replicas(4, Lengths(10.0), 16, unevenness=4.0)
    uneven = Synthesis(replace(even(4, 1), synthesizers=pool)).run()
    assert 0.02 < uneven.idle[0] < 0.3


def test_a_machine_holds_what_fits():
    replicas = [Replica(Replicas(5, EVEN, gpus=gpus)) for gpus in (4, 2, 2, 1, 8)]
    assert [node.gpus for node in placed(replicas, 8)] == [8, 1, 8]
    assert all(replica.node for replica in replicas)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 700),
    pools=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    block=st.integers(1, 50),
    sigma=st.sampled_from([0.0, 1.0]),
    losses=st.tuples(st.sampled_from([0.0, 300.0]), st.sampled_from([0.0, 300.0])),
    seed=st.integers(0, 99),
)
def test_every_row_is_written_once_whatever_is_lost(rows, pools, block, sigma, losses, seed):
    job = Job(
        rows,
        Replicas(pools[0], Lengths(10.0, sigma), 16, unevenness=4.0),
        Replicas(pools[1], EVEN, 16),
        block,
        start_s=20.0,
        gpus_per_node=2,
        losses_per_node_day=losses[0],
        head_losses_per_day=losses[1],
        seed=seed,
    )
    played = Synthesis(job)
    found = played.run()
    assert played.written[-1][1] == rows
    left = [*played.first.waiting, *played.second.waiting, *played.second.done, *played.writing]
    assert not left
    assert found.asked_again >= 0
    assert found.asked_again == 0 or found.losses
    assert 0 < found.goodput <= 1 + 1e-9


def test_losses_cost_time_and_only_what_was_in_work_is_asked_again():
    calm = Synthesis(even(8, 1, rows=64_000, start_s=30.0)).run()
    rough = Synthesis(even(8, 1, rows=64_000, start_s=30.0, gpus_per_node=1, losses_per_node_day=48.0)).run()
    assert rough.losses > 5
    assert rough.seconds > calm.seconds
    assert rough.goodput < calm.goodput
    most = even(8, 1).synthesizers.pool(16).unfinished * 16  # what one loss can cost, were all of it on that machine
    assert 0 < rough.asked_again * 64_000 <= rough.losses * most


def test_pools_share_the_gpus_so_that_both_are_busy():
    assert [(job_for(COSTS, gpus, 1).synthesizers.count, job_for(COSTS, gpus, 1).judges.count) for gpus in (2, 10)] == [
        (1, 1),
        (8, 2),
    ]
    alone = job_for(COSTS, 1, 100)
    assert alone.synthesizers.gpus + alone.judges.gpus == 1
    assert alone.ideal_gpu_seconds == pytest.approx(100 * (COSTS.synthesizer_s + COSTS.judge_s))


def test_the_last_line_with_what_is_asked_for(monkeypatch, tmp_path):
    """scale.py can be run without its weak half, and then its last line has none."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(cluster_sim, "ROOT", tmp_path)
    assert cluster_sim.last_line("scale", "weak") is None
    lines = [{"metrics": {"weak": 1}}, {"metrics": {"weak": 2}}, {"metrics": {"rows": 3}}]
    (results / "scale.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cluster_sim.last_line("scale", "weak") == {"weak": 2}
    assert cluster_sim.last_line("scale") == {"rows": 3}
    assert cluster_sim.last_line("scale", "other") is None


@pytest.mark.parametrize("check", [checked_loop, checked_scale])
def test_it_agrees_with_what_real_ray_did(check):
    """Within a tenth, or five points of a share."""
    found = check(COSTS)
    assert found, "benchmarks/results has nothing to compare with"
    for name, pair in found.items():
        tolerance = {"abs": 0.05} if "idle" in name else {"rel": 0.1}
        assert pair["predicted"] == pytest.approx(pair["measured"], **tolerance), name


def test_a_training_without_losses_is_steps_and_saves():
    seconds, again = Training(100, 2.0, 30, 5.0, nodes=4, start_s=60.0, provision_s=40.0).run()
    assert (seconds, again) == (100 + 100 * 2.0 + 4 * 5.0, 0)


def test_a_training_with_losses_agrees_with_the_textbook():
    """Mean time of t seconds of work under losses of rate r, with restarts of s: exp(r s) (exp(r t) - 1) / r."""
    rate, start, segment = 8 * 20.0 / DAY, 60.0, 30 * 2.0 + 5.0
    expected = start + 40 * math.exp(rate * start) * (math.exp(rate * segment) - 1) / rate
    trainings = [
        Training(1200, 2.0, 30, 5.0, nodes=8, start_s=60.0, losses_per_node_day=20.0, seed=seed) for seed in range(40)
    ]
    assert mean(training.run()[0] for training in trainings) == pytest.approx(expected, rel=0.05)
