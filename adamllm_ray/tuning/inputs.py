"""What all trials share, made once: the catalog of what there is to train on, questions, the base model's answers.

    tune/inputs/<base>/stock/        catalog.parquet, replay/, stock.json (written last)
    tune/inputs/<base>/answers/      questions with images, answers of the base model, manifest

A trial then reads the rows of its mixture where they are, and asks its own model only. There is one folder per base
model, because lengths are counted in the tokens of its processor.
"""

from __future__ import annotations

import hashlib
import json

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.evaluation.runner import ask_base
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.training.books import Stock, forbidden_sets, take_stock
from adamllm_ray.training.catalog import read_catalog, write_catalog

DONE = "stock.json"


def prepare(config: RunConfig, run: RunFolder, tune: StageFolder) -> None:
    """Make what is not there yet for the trials of this configuration. Needs a Ray connection.

    Args:
        config: of a trial.
        run: the folder that the records are in.
        tune: the stage of the search.
    """
    stock = _stock_stage(config, tune)
    if storage.read_small(stock.place.child(DONE)) is None:
        storage.make_folder(stock.place)
        taken = take_stock(config, run, stock, resolve_model(config.models.base), forbidden_sets(config))
        write_catalog(taken.catalog, stock)
        storage.write_small(stock.place.child(DONE), json.dumps(taken.replay).encode())
    ask_base(config, answers(config, tune))


def stock(config: RunConfig, tune: StageFolder) -> Stock:
    """What `prepare` found to train on."""
    stage = _stock_stage(config, tune)
    return Stock(read_catalog(stage), json.loads(storage.read_small(stage.place.child(DONE)) or b"{}"))


def answers(config: RunConfig, tune: StageFolder) -> StageFolder:
    """Where the questions and the base model's answers are."""
    return StageFolder("answers", _place(config, tune).child("answers"))


def _stock_stage(config: RunConfig, tune: StageFolder) -> StageFolder:
    return StageFolder("stock", _place(config, tune).child("stock"))


def _place(config: RunConfig, tune: StageFolder) -> storage.Location:
    digest = hashlib.sha256(config.models.base.encode()).hexdigest()[:8]
    return tune.place.child(f"inputs/{digest}")
