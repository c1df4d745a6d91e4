"""The step loop: an engine (DeepSpeed's), a stream of batches, a schedule. No Ray in it.

    loop = StepLoop(model, section, steps=source.steps)
    reports = loop.run(source, on_step=print)

It runs as it is in one Python process, under torchrun, and inside a Ray Train worker. The loss of a step is the mean
over all labelled tokens of the *global* batch, over accumulation and workers, so one worker and eight give the same
losses up to rounding. Everything that a step does depends on (seed, step) alone: a run that continues from a
checkpoint repeats what it would have done.
"""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import TrainingError
from adamllm_ray.training.collate import Batch
from adamllm_ray.training.conversations import IGNORE
from adamllm_ray.training.engines import PlainEngine, open_engine

if TYPE_CHECKING:
    from adamllm_ray.config import TrainingSection
    from adamllm_ray.training.flops import Meter

TAG = "state"  # DeepSpeed's name for the folder inside a checkpoint


class BatchSource(Protocol):
    """A finite, deterministic stream: ``load(step)`` gives this worker's micro-batches of a step, always as many."""

    steps: int

    def load(self, step: int) -> list[Batch]:
        """Micro-batches of step ``step``, counted from 0."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What happened in an optimizer step.

    Attributes:
        step: counted from 1.
        loss: nats per labelled token, before the update, over the global batch.
        lr: learning rate of the first parameter group.
        tokens: labelled tokens of the global batch.
        seconds: wall time of the step on this worker.
        waited: seconds before it in which this worker had no batch yet.
        at: when it ended, seconds since 1970.
        inputs: input tokens of the global batch, image tokens included, padding not.
        padding: share of the computed positions that are padding.
        examples: in the global batch.
        grad_norm: before clipping, over all parameters.
        flops: useful floating-point operations of the global batch, forward and backward; 0 where not known.
        mfu: share of what the workers' devices could have done in ``seconds + waited``; None where not known.
        kinds: kind of text (caption, task, replay:NAME) -> (nats per labelled token, labelled tokens).
        refused: example id -> verdict, of this worker's examples that could not be used in this step.
        stopping: a worker was asked to stop; all workers see it in the same step, and this is their last.
    """

    step: int
    loss: float
    lr: float
    tokens: int
    seconds: float
    waited: float = 0.0
    at: float = 0.0
    inputs: int = 0
    padding: float = 0.0
    examples: int = 0
    grad_norm: float = 0.0
    flops: float = 0.0
    mfu: float | None = None
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)
    refused: dict[str, Verdict] = field(default_factory=dict)
    stopping: bool = False


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite. Nothing was updated by that step; trying again gives the same."""


class StepLoop:
    """A model in a DeepSpeed engine, and how to take steps with it.

    Args:
        model: any module whose ``forward(**inputs)`` returns an object with ``.loss`` (mean over ``weight`` items),
            or one that also takes ``logits_to_keep`` (transformers' language models): then logits are computed at
            labelled positions only, and the loss in fp32.
        section: batch sizes, schedule, precision, ZeRO stage.
        steps: optimizer steps of the whole run; the schedule ends there.
        groups: torch parameter groups with their own lr / weight_decay; all parameters with the section's otherwise.
        kinds: kinds of text whose loss is also reported apart; the same on all workers.
        seed: for dropout.
        meter: counts useful FLOPs (see `flops`); without one, none are known.
        engine: what drives the model (see `engines`): DeepSpeed where it is installed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        section: TrainingSection,
        *,
        steps: int,
        groups: list[dict[str, Any]] | None = None,
        kinds: Sequence[str] = (),
        seed: int = 0,
        meter: Meter | None = None,
        engine: Callable[..., Any] = open_engine,
    ) -> None:
        join_process_group()
        self.section, self.steps, self.kinds, self.seed, self.meter = section, steps, list(kinds), seed, meter
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.labelled = "logits_to_keep" in inspect.signature(model.forward).parameters
        groups = groups or [{"params": [p for p in model.parameters() if p.requires_grad]}]
        groups = [{"lr": section.learning_rate, "weight_decay": section.weight_decay, **group} for group in groups]
        self._base_lrs = [float(group["lr"]) for group in groups]
        self.engine: Any = engine(model, section, groups, world=self.world)
        self._settings = [{k: v for k, v in g.items() if k != "params"} for g in self.engine.optimizer.param_groups]
        # compiled, it is one pass over logits in half precision instead of several over copies in fp32
        self._token_losses = torch.compile(token_losses, dynamic=True) if section.compile else token_losses
        self.dtype = torch.bfloat16 if section.precision == "bf16" else torch.float32

    def run(
        self,
        source: BatchSource,
        *,
        start: int = 0,
        on_step: Callable[[StepReport], None] | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> list[StepReport]:
        """Take the steps from ``start`` (steps already done) to the end of the source.

        Args:
            asked_to_stop: looked at before every step; True on any worker makes that step the last on all of them.

        Raises:
            LossNotFinite: NaN, infinite, or without any labelled token; stops before the update, on every worker.
        """
        self.engine.train()
        reports = []
        for step, batches, waited in _ahead(self._load_from(source), start, source.steps):
            report = self._step(step, batches, asked_to_stop(), waited)
            reports.append(report)
            if on_step is not None:
                on_step(report)
            if report.stopping:
                break
        return reports

    def save(self, folder: str | Path) -> None:
        """Write this worker's share of weights and optimizer state under ``folder``. Every worker must call it."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: str | Path, *, universal: bool = False) -> None:
        """Restore what `save` wrote with as many workers, or what `reshard.to_universal` made of it for any number.

        Raises:
            TrainingError: the checkpoint cannot be read.
        """
        if not isinstance(self.engine, PlainEngine):
            self.engine._config.load_universal_checkpoint = universal  # DeepSpeed takes it from its JSON only
        try:
            path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        except Exception as error:  # DeepSpeed raises bare RuntimeError, AssertionError, KeyError, ...
            raise TrainingError(f"the checkpoint in {folder} cannot be loaded: {error}") from error
        if path is None:
            raise TrainingError(f"there is no checkpoint in {folder}")
        if universal:
            self._mend_optimizer()

    def _mend_optimizer(self) -> None:
        """Undo what DeepSpeed's universal loader for ZeRO-3 mixes up (0.19.8, measured as other losses).

        It gives every parameter group the settings of the first one (weight decay, say), and all parameters one and
        the same step counter, which then counts once for each of them.
        """
        for group, own in zip(self.engine.optimizer.param_groups, self._settings, strict=True):
            group.update(own)
        inner = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        for state in inner.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    def each_weight(self, take: Callable[[str, torch.Tensor], None]) -> None:
        """Call ``take(name, tensor)`` on worker 0 for every entry of the model's state dict.

        Every worker must call this. Under ZeRO-3 the tensor is a copy on the CPU, whole; they are put together one at
        a time, so the other workers never hold more than their shards and one of them. Otherwise it is the model's own.
        """
        model = self.engine.module
        if self.section.zero_stage < 3 or isinstance(self.engine, PlainEngine):
            for name, tensor in model.state_dict().items() if self.rank == 0 else ():
                take(name, tensor.detach())
            return
        import deepspeed

        named = dict(model.named_buffers(remove_duplicate=False))
        named |= dict(model.named_parameters(remove_duplicate=False))
        for name in model.state_dict():
            with deepspeed.zero.GatheredParameters([named[name]]):
                if self.rank == 0:
                    take(name, named[name].detach().to("cpu", copy=True))

    def _load_from(self, source: BatchSource) -> Callable[[int], list[Batch]]:
        """``source.load``, and for a GPU its dtype and pinned memory, from which it copies while it computes."""
        if self.engine.device.type != "cuda":
            return source.load

        def load(step: int) -> list[Batch]:
            return [
                replace(batch, inputs={name: self._cast(one).pin_memory() for name, one in batch.inputs.items()})
                for batch in source.load(step)
            ]

        return load

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _step(self, step: int, batches: list[Batch], stop: bool, waited: float) -> StepReport:
        began = time.perf_counter()
        torch.manual_seed(self.seed * 1_000_003 + step * 1009 + self.rank)
        text = batches if self.labelled else []  # what a model of another kind calls its inputs is not known here
        total, stopping, inputs, positions, examples, flops = self._sum(
            sum(batch.weight for batch in batches),
            stop,
            sum(batch.tokens for batch in text),
            sum(batch.inputs["input_ids"].numel() for batch in text),
            sum(len(batch.ids) for batch in batches),
            sum(self.meter.flops(batch) for batch in batches) if self.meter else 0.0,
        )
        if total <= 0:
            raise LossNotFinite(f"step {step + 1}: no token of the global batch carries loss")
        lr = self._set_learning_rate(step)
        summed: Any = 0.0  # a tensor on the engine's device: to read it is to wait for the device
        for index, batch in enumerate(batches):
            loss, parts = self._loss_sum(batch)
            summed = summed + torch.cat([loss.detach().double()[None], parts])
            # with a token budget the number of micro-batches differs from step to step
            self.engine.set_gradient_accumulation_boundary(index + 1 == len(batches))
            # DeepSpeed averages gradients over workers; we want their sum over the global count of labels
            self.engine.backward(loss * (self.world / total), scale_wrt_gas=False)
            if index + 1 < len(batches):
                self.engine.step()  # only counts: the optimizer moves at the end of the accumulation
        whole, *apart = self._sum(*summed.tolist())
        if not math.isfinite(whole):  # the same on every worker, so all stop here together
            mean = whole / total
            raise LossNotFinite(f"step {step + 1}: the loss is {mean}; lower training.learning_rate, or see its data")
        self.engine.step()
        counts = zip(self.kinds, apart[::2], apart[1::2], strict=True)
        seconds = time.perf_counter() - began
        return StepReport(
            step=step + 1,
            loss=whole / total,
            lr=lr,
            tokens=int(total),
            seconds=seconds,
            waited=waited,
            at=time.time(),
            inputs=int(inputs),
            padding=1 - inputs / positions if positions else 0.0,
            examples=int(examples),
            grad_norm=float(self.engine.get_global_grad_norm() or 0.0),
            flops=flops,
            mfu=self.meter.share(flops, (seconds + waited) * self.world) if self.meter else None,
            kinds={kind: (nats / count, int(count)) for kind, nats, count in counts if count},
            refused={id: verdict for batch in batches for id, verdict in batch.refused.items()},
            stopping=stopping > 0,
        )

    def _loss_sum(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the loss over the batch's labelled tokens, a scalar with gradient; (sum, labels) of each kind."""
        device = self.engine.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
        inputs = {name: self._cast(tensor) for name, tensor in inputs.items()}
        if not self.labelled:
            loss = self.engine(**inputs).loss.float() * batch.weight
            return loss, torch.zeros(2 * len(self.kinds), dtype=torch.float64, device=device)
        targets = inputs.pop("labels")[:, 1:]
        columns = (batch.inputs["labels"][:, 1:] != IGNORE).any(0).nonzero().flatten()
        columns = (columns if len(columns) else torch.zeros(1, dtype=torch.long)).to(device)
        logits = self.engine(**inputs, logits_to_keep=columns, use_cache=False).logits
        targets = targets[:, columns]
        losses = self._token_losses(logits.flatten(0, 1), targets.flatten())
        apart = self._apart(batch, losses.detach().view(targets.shape), targets, columns)
        return (losses.sum() if batch.weight else losses.sum() * 0.0), apart

    def _apart(self, batch: Batch, losses: torch.Tensor, targets: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(sum of the loss, labelled tokens) for each of ``self.kinds``, flat; nothing without kinds."""
        if not self.kinds or not batch.weight:
            return torch.zeros(2 * len(self.kinds), dtype=torch.float64, device=columns.device)
        which = torch.full(batch.inputs["labels"].shape, -1)
        for row, start, stop, kind in batch.kinds:
            which[row, start:stop] = self.kinds.index(kind)
        which = which[:, 1:].to(columns.device, non_blocking=True)[:, columns]
        found = [((which == index) & (targets != IGNORE)) for index in range(len(self.kinds))]
        pairs = [torch.stack([losses[mask].sum(), mask.sum().float()]) for mask in found]
        return torch.cat(pairs).double()

    def _set_learning_rate(self, step: int) -> float:
        factor = schedule_factor(self.section, step, self.steps)
        for group, base in zip(self.engine.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        return self._base_lrs[0] * factor

    def _sum(self, *values: float) -> list[float]:
        """Sums over all workers."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats of each of ``targets`` [tokens], in fp32, from logits [tokens, words]; 0 where nothing is to be learnt."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="none")


def schedule_factor(section: TrainingSection, step: int, steps: int) -> float:
    """Share of the base learning rate at ``step`` (from 0): linear warm-up, then the configured decay to its floor."""
    warmup = math.ceil(section.warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    if section.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    decay = 0.5 * (1 + math.cos(math.pi * done)) if section.schedule == "cosine" else 1 - done
    return section.min_lr_share + (1 - section.min_lr_share) * decay


def join_process_group() -> None:
    """Use the process group that exists (Ray Train), the one torchrun describes, or a group of one."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if dist.is_initialized():
        return
    if "MASTER_ADDR" in os.environ and "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it


def _ahead(load: Callable[[int], list[Batch]], start: int, steps: int) -> Iterator[tuple[int, list[Batch], float]]:
    """Batches of each step, the next one prepared in a thread while this one computes, and seconds waited for them."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        upcoming: Future[list[Batch]] | None = pool.submit(load, start) if start < steps else None
        for step in range(start, steps):
            assert upcoming is not None
            began = time.perf_counter()
            batches = upcoming.result()
            waited = time.perf_counter() - began
            upcoming = pool.submit(load, step + 1) if step + 1 < steps else None
            yield step, batches, waited
