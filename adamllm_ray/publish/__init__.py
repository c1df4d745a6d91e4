"""The kept data of a run as a data set of its own: `adamllm publish`.

::

    dataset.py    rows -> Parquet shards that `datasets`, TRL and LLaMA-Factory load
    card.py       README.md: sources, licences, statistics, keep rate, verdicts, models

::

    DIR/
    ├── README.md            the card, in the hub's format
    ├── dataset_info.json    the same data for LLaMA-Factory (dataset_dir: DIR, dataset: the name in it)
    └── data/train-*.parquet
"""
