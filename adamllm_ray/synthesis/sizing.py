"""What machines a synthesis needs to be done in a given time: a plan's figures in, pools, nodes and sizes out.

    adamllm plan CONFIG --rows 500                          measures one replica of each pool
    adamllm size CONFIG --images 1000000 --hours 12 --price 2.5 --losses 1

Sums, no measurement: docs/sizing.md has them in words and says which constants were measured and which are assumed.
`benchmarks/cluster_sim.py` plays the same run event by event; a test holds the two together.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adamllm_ray.config import RunConfig
from adamllm_ray.errors import ConfigError
from adamllm_ray.synthesis.graph import UNEVENNESS, pools_of

if TYPE_CHECKING:
    from adamllm_ray.data.run import RunFolder

DAY_S, GIB = 86_400.0, 1 << 30
PREPARE_S = 0.05  # of one CPU, per image: decoding and the processor's tiles (measured: benchmarks/driver_cost.py)
CPUS_PER_REPLICA = 2.0  # the replica's own process, and the engine's; preparing comes on top
READ_BYTES = 256 << 20  # that one reader holds in the object store: two blocks of Ray Data
STORE_SHARE = 0.5  # of the object store that Ray Data allows itself
SHM_PER_GPU = 1 * GIB  # besides the object store: tensor parallelism, NCCL
LOGS_BYTES = 20 * GIB  # Ray's logs and what it may spill
MOST_BLOCKS_S = 10.0  # blocks that one driver handles in a second with room to spare


@dataclass(frozen=True)
class Target:
    """What is asked for, and what machines are like."""

    images: int
    hours: float
    price: float | None = None  # of a GPU-hour
    gpus_per_node: int = 8
    losses: float = 0.0  # of a node, per day
    provision_s: float = 300.0  # from asking for a node to having it


@dataclass(frozen=True)
class Needs:
    """What to ask for. Bytes and CPUs are of one node with GPUs, unless they say otherwise."""

    synthesizers: int
    judges: int
    gpus: int
    nodes: int
    cpus: int
    object_store_bytes: int
    shm_bytes: int
    disk_bytes: int  # without the models
    bucket_bytes: int  # of the run folder: images are in ingest and in synthesize
    hours: float
    gpu_hours: float
    goodput: float  # of the GPU-hours, those that full replicas would need
    cost: float | None
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Speed:
    """Of one replica of each pool, from a plan. Seconds per row; ``tail_s`` is what the last block takes at the end."""

    synthesizer_s: float
    judge_s: float
    start_s: float
    tail_s: float
    row_bytes: float

    @classmethod
    def of(cls, plan: dict[str, Any], config: RunConfig) -> Speed:
        """Read from what `adamllm plan` wrote."""
        probe = plan["probe"]
        return cls(
            probe["synthesizer_seconds"],
            max(probe["judge_seconds"], 1e-9),
            probe["start_seconds"],
            UNEVENNESS * probe["synthesizer_seconds"] * config.synthesis.engine.slots,
            plan["output_bytes"] / max(1, plan["rows"]),
        )


def size(config: RunConfig, run: RunFolder, target: Target) -> Needs:
    """What ``target`` takes with the replicas that were probed.

    Raises:
        ConfigError: there is no plan yet, the replicas have no GPUs, or the time is too short to start anything.
    """
    written = run.read("plan/plan.json")
    if written is None:
        raise ConfigError(f"{run.uri} holds no plan; run `adamllm plan` first, it measures one replica of each pool")
    return reckon(config, Speed.of(json.loads(written), config), target)


def reckon(config: RunConfig, speed: Speed, target: Target) -> Needs:
    """The sums. Raises ConfigError as `size`."""
    gpus = config.synthesis.engine.gpus_per_replica, config.judge.engine.gpus_per_replica
    if not all(gpus):
        raise ConfigError(
            "sizing counts GPUs: set synthesis.engine.gpus_per_replica and judge.engine.gpus_per_replica, plan again"
        )
    waste = lost_share(speed, target)
    start_s = target.provision_s + speed.start_s + speed.tail_s
    left_s = 3600 * target.hours - start_s
    if left_s <= 0:
        raise ConfigError(
            f"{target.hours:g} hours are less than starting and the longest answers take ({start_s / 3600:.2f} hours)"
        )
    work_s = target.images * (1 + waste)
    synthesizers = math.ceil(work_s * speed.synthesizer_s / left_s)
    judges = math.ceil(work_s * speed.judge_s / left_s)
    seconds = work_s / min(synthesizers / speed.synthesizer_s, judges / speed.judge_s) + start_s
    total = math.ceil(synthesizers * gpus[0] + judges * gpus[1] - 1e-9)
    nodes = math.ceil(total / target.gpus_per_node)
    gpu_hours = total * (seconds - target.provision_s) / 3600
    ideal_s = target.images * (speed.synthesizer_s * gpus[0] + speed.judge_s * gpus[1])
    store = _object_store(config, speed, synthesizers, nodes)
    return Needs(
        synthesizers=synthesizers,
        judges=judges,
        gpus=total,
        nodes=nodes,
        cpus=_cpus(speed, target, (synthesizers + judges) / nodes, synthesizers / nodes),
        object_store_bytes=store,
        shm_bytes=store + target.gpus_per_node * SHM_PER_GPU,
        disk_bytes=LOGS_BYTES,
        bucket_bytes=round(2 * target.images * speed.row_bytes),
        hours=seconds / 3600,
        gpu_hours=gpu_hours,
        goodput=ideal_s / 3600 / gpu_hours,
        cost=None if target.price is None else gpu_hours * target.price,
        notes=tuple(_notes(config, speed, target, synthesizers, seconds)),
    )


def lost_share(speed: Speed, target: Target) -> float:
    """Work that is done twice or not at all because nodes are lost, over the work itself.

    A lost node costs the time until another is there with its models loaded, and what its replicas had not written:
    rows half done, and finished ones in blocks that are not, half of the longest answer together.
    """
    return target.losses / DAY_S * (target.provision_s + speed.start_s + speed.tail_s / 2)


def _object_store(config: RunConfig, speed: Speed, synthesizers: int, nodes: int) -> int:
    """Blocks at the replicas and waiting, and what the readers hold; twice, since Ray Data takes half of it."""
    engine = config.synthesis.engine.model_copy(update={"replicas": synthesizers, "min_replicas": None})
    synthesis = config.synthesis.model_copy(update={"engine": engine})
    pool = pools_of(config.model_copy(update={"synthesis": synthesis}))["synthesis"]
    waiting = pool.unfinished * config.synthesis.rows_per_block * speed.row_bytes
    readers = max(2, synthesizers) * READ_BYTES
    return math.ceil((waiting + readers) / nodes / STORE_SHARE / GIB) * GIB


def _cpus(speed: Speed, target: Target, replicas: float, synthesizers: float) -> int:
    """Of one node: its replicas' processes, the images they prepare, and two for Ray."""
    return math.ceil(2 + replicas * CPUS_PER_REPLICA + synthesizers * PREPARE_S / speed.synthesizer_s)


def _notes(config: RunConfig, speed: Speed, target: Target, synthesizers: int, seconds: float) -> list[str]:
    notes = []
    rows_per_s = synthesizers / speed.synthesizer_s
    blocks = config.synthesis.rows_per_block
    if rows_per_s / blocks > MOST_BLOCKS_S:
        notes.append(
            f"{rows_per_s:.0f} rows/s in blocks of {blocks} are more than one driver keeps up with: set "
            f"synthesis.rows_per_block to {2 ** math.ceil(math.log2(rows_per_s / MOST_BLOCKS_S))} or more"
        )
    if PREPARE_S / speed.synthesizer_s > 0.7:
        notes.append("preparing images takes most of one CPU per replica: its engine may wait for them")
    waiting = (target.provision_s + speed.start_s + speed.tail_s) / seconds
    if waiting > 0.2:
        notes.append(
            f"{waiting:.0%} of the time is starting and waiting for the last answers: fewer replicas and more hours "
            "cost less"
        )
    return notes
