"""Batches made in other processes: a Ray Data pipeline for each training worker, in the order of its steps.

Decoding, the model's processor and tokenizing run in ``training.data_workers`` actors, on whatever nodes have CPUs
free; the training process only copies finished tensors to its device. What a step holds depends on (seed, step)
alone, so a restart opens the pipeline at the next step and an actor that dies is simply asked again (by Ray).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch

from adamllm_ray.training.collate import Batch

STEPS_AHEAD = 4  # per data worker: steps that may be ready and not yet taken


class FedBatches:
    """`BatchSource` whose batches come from Ray Data actors. Steps must be taken in order.

    Args:
        steps: optimizer steps of the whole run.
        opening: keyword arguments of `stream.open_batches`, plain data.
        workers: actors, one CPU each.
    """

    def __init__(self, steps: int, opening: dict[str, Any], workers: int) -> None:
        self.steps, self._opening, self._workers = steps, opening, workers
        self._stream: Iterator[tuple[int, list[Batch]]] | None = None

    def load(self, step: int) -> list[Batch]:
        """This worker's micro-batches of a step, counted from 0. The first call decides where the stream starts."""
        if self._stream is None:
            self._stream = self._open(step)
        found, batches = next(self._stream)
        if found != step:
            raise RuntimeError(f"the data pipeline gave step {found} where {step} was due")
        if step + 1 == self.steps:
            next(self._stream, None)  # lets Ray Data end the pipeline and its actors
        return batches

    def _open(self, start: int) -> Iterator[tuple[int, list[Batch]]]:
        import ray.data

        todo = self.steps - start
        steps = ray.data.range(todo, override_num_blocks=todo)  # a block per step: the unit of order and of retry
        made = steps.map_batches(
            _Maker,
            fn_constructor_kwargs={"start": start, "opening": self._opening},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._workers, max_tasks_in_flight_per_actor=STEPS_AHEAD),
            num_cpus=1,
        )
        made.context.execution_options.preserve_order = True
        for table in made.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=STEPS_AHEAD):
            yield table["step"][0].as_py(), _from_bytes(table["batches"][0].as_py())


class _Maker:
    """The actor: has the plan, the reader and the processor; turns a step number into batches."""

    def __init__(self, start: int, opening: dict[str, Any]) -> None:
        from adamllm_ray.training.stream import open_batches

        torch.set_num_threads(1)
        self.start, self.source = start, open_batches(**opening)

    def __call__(self, batch: pa.Table) -> pa.Table:
        steps = [self.start + number for number in batch["id"].to_pylist()]
        made = [_to_bytes(self.source.load(step)) for step in steps]
        return pa.table({"step": steps, "batches": pa.array(made, pa.large_binary())})


def _to_bytes(batches: list[Batch]) -> bytes:
    plain = [({k: v.numpy() for k, v in b.inputs.items()}, b.weight, b.ids, b.refused, b.kinds) for b in batches]
    return pickle.dumps(plain, protocol=5)


def _from_bytes(data: bytes) -> list[Batch]:
    plain: list[Any] = pickle.loads(data)  # noqa: S301 - made by our own actor
    return [Batch({k: torch.from_numpy(v) for k, v in inputs.items()}, *rest) for inputs, *rest in plain]
