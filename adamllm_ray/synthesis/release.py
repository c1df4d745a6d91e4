"""Finished blocks leave nothing in the driver.

``Dataset.write_parquet`` first materialises the dataset of its write results: it holds a reference to the result of
every block until the last one is written. With each reference Ray keeps the descriptions of all tasks that led to it,
so that it could make the block again: 30 to 50 MB in the driver for 100,000 rows in blocks of 64
(benchmarks/LOG.md). Nobody wants a written block again: its rows are in a file, and its ids in the ledger. Here the
results are read one by one as they come, summed up and let go (docs/decisions/0018-bounded-waiting.md). The figures of
each block that Ray collects for ``Dataset.stats()``, which nobody prints here, go the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def written_blocks_let_go() -> Iterator[None]:
    """Writes in the block stream through their results instead of holding them. Other datasets are as they were.

    ``write_datasink`` asks a dataset whose last step is the write to materialise itself, and then iterates over it:
    a dataset that stays lazy is executed by that iteration (Ray 2.60). It keeps a list of what the blocks returned and
    adds them up at the end; here they are added up as they come, and the list is one of nothings.
    """
    from ray.data import Dataset, dataset
    from ray.data._internal.logical.operators import Write
    from ray.data.datasource import WriteResult

    held, result_of = Dataset.materialize, dataset._gen_datasink_write_result
    total, nothing = WriteResult(0, 0, []), WriteResult(0, 0, [])

    def lazy_if_written(self: Dataset) -> Dataset:
        return self if isinstance(self._logical_plan.dag, Write) else held(self)

    def added(blocks: list[Any]) -> WriteResult:
        one = result_of(blocks)
        total.num_rows, total.size_bytes = total.num_rows + one.num_rows, total.size_bytes + one.size_bytes
        return nothing

    class Added(WriteResult):
        @classmethod
        def combine(cls, *_: WriteResult) -> WriteResult:
            return total

    Dataset.materialize = lazy_if_written
    dataset._gen_datasink_write_result, dataset.WriteResult = added, Added
    try:
        yield
    finally:
        Dataset.materialize = held
        dataset._gen_datasink_write_result, dataset.WriteResult = result_of, WriteResult


def forget_figures(op: Any) -> None:
    """Empty a step's list of figures per block (Ray 2.60); its totals are kept elsewhere."""
    getattr(op, "_output_blocks_stats", []).clear()
