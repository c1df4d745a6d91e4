"""Finished blocks leave nothing in the driver.

``Dataset.write_parquet`` first materialises the dataset of its write results: it holds a reference to the result of
every block until the last one is written. With each reference Ray keeps the descriptions of all tasks that led to it,
so that it could make the block again: 30 to 50 MB in the driver for 100,000 rows in blocks of 64
(benchmarks/LOG.md). Nobody wants a written block again: its rows are in a file, and its ids in the ledger. Here the
results are read one by one as they come, and let go (docs/decisions/0018-bounded-waiting.md). The figures of each block
that Ray collects for ``Dataset.stats()``, which nobody prints here, go the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def written_blocks_let_go() -> Iterator[None]:
    """Writes in the block stream through their results instead of holding them. Other datasets are as they were.

    ``write_datasink`` asks a dataset whose last step is the write to materialise itself, and then iterates over it:
    a dataset that stays lazy is executed by that iteration (Ray 2.60).
    """
    from ray.data import Dataset
    from ray.data._internal.logical.operators import Write

    held = Dataset.materialize

    def lazy_if_written(self: Dataset) -> Dataset:
        return self if isinstance(self._logical_plan.dag, Write) else held(self)

    Dataset.materialize = lazy_if_written
    try:
        yield
    finally:
        Dataset.materialize = held


def forget_figures(op: Any) -> None:
    """Empty a step's list of figures per block (Ray 2.60); its totals are kept elsewhere."""
    getattr(op, "_output_blocks_stats", []).clear()
