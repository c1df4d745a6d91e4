"""What the step loop drives: DeepSpeed's engine, or torch's AdamW alone where DeepSpeed is not installed.

    engine = open_engine(model, section, groups, world=1)

`PlainEngine` is for one process: a profile, a benchmark, a build of the pocket models on a machine that has torch and
transformers and nothing else. It shards nothing and offloads nothing; where that is asked for it says so. On one
process ZeRO has nothing to shard either, so its losses are those of DeepSpeed up to rounding (a test compares them).
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adamllm_ray.errors import TrainingError

if TYPE_CHECKING:
    from adamllm_ray.config import TrainingSection

WEIGHTS, MOMENTS = "plain-model.safetensors", "plain-optimizer.safetensors"
MASTER = "master"  # of a parameter's fp32 copy, beside AdamW's own names


def open_engine(model: torch.nn.Module, section: TrainingSection, groups: list[dict[str, Any]], *, world: int) -> Any:
    """The engine for a model and torch parameter groups, each with ``lr`` and ``weight_decay``.

    Raises:
        TrainingError: DeepSpeed is not installed and the section needs it.
    """
    if importlib.util.find_spec("deepspeed") is None:
        return PlainEngine(model, section, groups, world=world)
    return deepspeed_engine(model, section, groups, world=world)


def deepspeed_engine(
    model: torch.nn.Module, section: TrainingSection, groups: list[dict[str, Any]], *, world: int
) -> Any:
    """DeepSpeed's engine, with `engine_config`."""
    config = engine_config(section, world)
    opened = _deepspeed().initialize(model=model, model_parameters=groups, config=config, dist_init_required=False)
    engine = opened[0]

    def clip() -> None:
        """What DeepSpeed does under ZeRO-0 in fp32, where it throws the norm away (0.19.8)."""
        parameters = engine.module.parameters()
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())

    engine.clip_fp32_gradients = clip
    return engine


def engine_config(section: TrainingSection, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration; keys of ``training.deepspeed`` are merged over it."""
    on_gpu = torch.cuda.is_available()
    adam = {"lr": section.learning_rate, "betas": list(section.betas), "weight_decay": section.weight_decay}
    # torch's own AdamW: DeepSpeed's would be compiled at the first start
    fused = {"torch_adam": True, "fused": True, "foreach": False}
    offload = "offload_optimizer" in section.deepspeed.get("zero_optimization", {})
    micro = section.micro_batch if section.token_budget is None else max(1, section.global_batch // world)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,  # book-keeping only: the loop says where an accumulation ends
        "gradient_accumulation_steps": max(1, section.global_batch // (micro * world)),
        "zero_optimization": {"stage": section.zero_stage, "overlap_comm": on_gpu},
        "optimizer": {"type": "AdamW", "params": adam if offload else adam | fused},
        "gradient_clipping": section.clip_norm,
        "bf16": {"enabled": section.precision == "bf16"},
        "steps_per_print": 10**9,
    }
    return _merged(config, section.deepspeed)


class PlainEngine:
    """One process, torch's fused AdamW, weights and moments in fp32 also when the model computes in bf16.

    Has what the step loop uses of DeepSpeed's engine, by the same names.

    Raises:
        TrainingError: several processes, or settings of DeepSpeed's own (``training.deepspeed``).
    """

    def __init__(
        self, model: torch.nn.Module, section: TrainingSection, groups: list[dict[str, Any]], *, world: int
    ) -> None:
        if world > 1 or section.deepspeed:
            wanted = f"{world} workers" if world > 1 else "training.deepspeed"
            raise TrainingError(f"{wanted}: that needs DeepSpeed, which is not installed (pip install deepspeed)")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = model.to(self.device, torch.bfloat16 if section.precision == "bf16" else torch.float32)
        self._clip, self._last, self._norm = section.clip_norm, True, 0.0
        copied = [group | {"params": [_master(own) for own in group["params"]]} for group in groups]
        self._pairs = [
            pair
            for group, copy in zip(groups, copied, strict=True)
            for pair in zip(group["params"], copy["params"], strict=True)
        ]
        self.optimizer = torch.optim.AdamW(copied, lr=section.learning_rate, betas=section.betas, fused=True)

    def __call__(self, **inputs: Any) -> Any:
        """The model's forward."""
        return self.module(**inputs)

    def train(self) -> None:
        """Dropout on."""
        self.module.train()

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Whether the next backward ends an optimizer step."""
        self._last = last

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool = False) -> None:
        """Add to the gradients, which are summed in fp32. ``scale_wrt_gas``: there is no such scaling here."""
        if scale_wrt_gas:
            raise TrainingError("the plain engine leaves scaling a loss to its caller")
        loss.backward()  # type: ignore[no-untyped-call]
        for own, master in self._pairs:
            if own is master or own.grad is None:
                continue
            master.grad = own.grad.float() if master.grad is None else master.grad.add_(own.grad)
            own.grad = None

    def step(self) -> None:
        """Clip and update, at the end of an accumulation."""
        if not self._last:
            return
        masters = [master for _, master in self._pairs]
        self._norm = float(torch.nn.utils.clip_grad_norm_(masters, self._clip))
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for own, master in self._pairs:
                if own is not master:
                    own.copy_(master)

    def get_global_grad_norm(self) -> float:
        """Of the last step, before clipping."""
        return self._norm

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool = False) -> None:
        """Weights into one file, moments and, of bf16 weights, fp32 copies into another; DeepSpeed reads neither."""
        from safetensors.torch import save_file, save_model

        place = Path(folder) / tag
        place.mkdir(parents=True, exist_ok=True)
        save_model(self.module, str(place / WEIGHTS))
        tensors = {f"{MASTER}.{n}": master.detach() for n, (own, master) in enumerate(self._pairs) if own is not master}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{number}": value for name, value in moments.items()}
        save_file(tensors, place / MOMENTS)

    def load_checkpoint(self, folder: str, *, tag: str) -> tuple[str | None, dict[str, Any]]:
        """Restore what `save_checkpoint` wrote. Returns its folder, None where there is none, as DeepSpeed does.

        Learning rates and weight decay are those of this engine: a schedule sets them at every step.
        """
        from safetensors.torch import load_file, load_model

        place = Path(folder) / tag
        if not (place / MOMENTS).exists():  # written last
            return None, {}
        load_model(self.module, str(place / WEIGHTS))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for key, value in load_file(place / MOMENTS).items():
                name, _, number = key.rpartition(".")
                if name == MASTER:
                    self._pairs[int(number)][1].copy_(value)
                else:
                    moments.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return str(place), {}


def _master(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """What the optimizer holds of a parameter: itself, or a copy in fp32."""
    if parameter.dtype == torch.float32:
        return parameter
    return torch.nn.Parameter(parameter.detach().float().clone())


def _deepspeed() -> Any:
    """The deepspeed module, without its optional shared-memory all-reduce for CPU.

    That op is compiled with a C++ compiler at the first start (minutes) and saves nothing at our sizes. DeepSpeed
    itself falls back to gloo where the op is marked incompatible, as it is on every system but Linux.
    """
    import deepspeed

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's older calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
