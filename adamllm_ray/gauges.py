"""What the driver knows, as gauges on Ray's Prometheus endpoint: progress of a stage, verdicts, training curves.

    show("stage_done", 4_000, stage="synthesize")

appears on the node's metrics endpoint as ``ray_adamllm_stage_done`` with the label ``stage``, for as long as this
process is part of a Ray cluster. Outside of Ray (ingest, a laptop before its first stage) it does nothing.
`adamllm_ray.synthesis.meters` has the figures of a replica; cluster/monitoring/ draws both and warns.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

PREFIX = "adamllm_"
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "stage_done": ("Rows, steps or questions that are done.", ("stage",)),
    "stage_total": ("Rows, steps or questions in all.", ("stage",)),
    "stage_rows": ("Rows that were written, by verdict; of a part of the blocks while a stage runs.",
                   ("stage", "verdict", "outcome")),
    "training_loss": ("Nats per labelled token of the last step.", ()),
    "training_kind_loss": ("The same, of one kind of text.", ("kind",)),
    "training_learning_rate": ("Of the first parameter group.", ()),
    "training_grad_norm": ("Of the last step, before clipping.", ()),
    "training_seconds": ("Of the last step, waiting for data included.", ()),
    "training_data_wait": ("Seconds that the last step waited for data.", ()),
    "training_tokens_per_second": ("Input tokens, image tokens included, over the last step's seconds.", ()),
    "training_examples_per_second": ("Examples over the last step's seconds.", ()),
    "training_padding": ("Share of the computed positions that are padding.", ()),
    "training_mfu": ("Share of what the devices could have done; absent where not known.", ()),
}  # fmt: skip

_made: dict[str, Any] = {}


def in_ray() -> bool:
    """This process is a Ray worker or driver, so that metrics have somewhere to go. Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def show(name: str, value: float, **tags: str) -> None:
    """Set a gauge of GAUGES, if this process is in Ray."""
    if not in_ray():
        return
    if name not in _made:
        from ray.util import metrics

        words, keys = GAUGES[name]
        _made[name] = metrics.Gauge(PREFIX + name, words, keys)
    _made[name].set(value, tags=tags)


def show_progress(stage: str, done: int, total: int | None) -> None:
    """How far a stage is; both again each time, since the connection to Ray may be newer than the stage."""
    show("stage_done", done, stage=stage)
    if total is not None:
        show("stage_total", total, stage=stage)


def show_training(curves: Mapping[str, float]) -> None:
    """The curves of a step, named as the trackers name them (``loss``, ``loss/caption``, ``speed/mfu``)."""
    for name, value in curves.items():
        group, _, rest = name.partition("/")
        if group == "loss" and rest:
            show("training_kind_loss", value, kind=rest)
        else:
            show(f"training_{rest or group}", value)
