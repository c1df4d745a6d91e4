"""Make the pocket models from nothing: tokenizer, vision tower, base, synthesizer, judge, and what they can do.

    adamllm pocket build runs/pocket
    adamllm pocket build runs/pocket --train-only     on a machine with a GPU and neither vLLM nor DeepSpeed

The models train with the package's own step loop (training/loop.py) in one process. Every part has a folder; a
finished one holds done.json and is not made again, and training continues from its last checkpoint. Single precision,
fixed seeds and a fixed number of threads give the same weights on the same kind of machine. The language model learns
to look things up among marks (`marks`), the tower to say what its patches show (linear heads on facts about general
pictures, which stands in for the CLIP pretraining of a real tower), and then one is put before the other.

Nothing here sees a satellite picture or a domain caption; only the last step measures on them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adamllm_ray import progress
from adamllm_ray.config import LayersSection, TrainingSection
from adamllm_ray.data.manifest import code_version
from adamllm_ray.pocket.architecture import (
    Size,
    begin_by_saying,
    build_judge,
    build_processor,
    build_tokenizer,
    build_vlm,
)
from adamllm_ray.ray_runtime import prepare_environment

THREADS = 2
LOADERS = 8  # processes that make examples for a GPU
CHECKPOINT_EVERY = 200  # steps
WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("base", "synthesizer", "judge")
STEPS = {
    "tower": 8000,
    "recall": 300,
    "questions": 1200,
    "words": 800,
    "base": 1200,
    "synthesizer": 800,
    "judge": 900,
}
_ROOMS = ("architecture", "curriculum", "language", "marks", "painting", "regions", "tower", "world")
_CODE = [f"adamllm_ray.pocket.{name}" for name in _ROOMS]


def build(output: Path, *, install: bool = False, seed: int = 0) -> dict[str, Any]:
    """Make all three models below ``output`` and measure them. Returns the figures; with ``install`` ships them.

    Args:
        seed: of the first weights and of every example. The pictures and the tokenizer are the same for all.
    """
    seconds = train(output, seed)
    from adamllm_ray.pocket.gates import gates, measure

    figures = measure({name: output / name for name in MODELS})
    figures["gates"] = gates(figures)
    figures["seed"] = seed
    figures["seconds"] = seconds
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if install:
        _install(output)
    return figures


def train(output: Path, seed: int = 0) -> dict[str, int]:
    """Make what `build` makes, without measuring it. Returns the seconds that each part took."""
    _prepare()
    output.mkdir(parents=True, exist_ok=True)
    _part(output, "tokenizer", _make_tokenizer)
    _part(output, "tower", lambda folder: _make_tower(folder, seed), seed)
    _part(output, "base", lambda folder: _make_base(folder, seed), seed)
    _part(output, "synthesizer", lambda folder: _make_synthesizer(folder, output / "base", seed), seed)
    _part(output, "judge", lambda folder: _make_judge(folder, output / "base", seed), seed)
    return {name: json.loads((output / name / "done.json").read_text())["seconds"] for name in ("tower", *MODELS)}


def _prepare() -> None:
    prepare_environment()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same sums in the same order, on a GPU too
    import torch

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _part(output: Path, name: str, make: Callable[[Path], dict[str, Any]], seed: int = 0) -> None:
    """Make one part in its folder unless it is there, made by this very code from this seed."""
    folder = output / name
    marker = folder / "done.json"
    version = {"code": code_version(*_CODE), "seed": seed}
    if marker.exists() and version.items() <= json.loads(marker.read_text()).items():
        return
    if marker.exists():
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    figures = make(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    done = version | {"seconds": round(time.monotonic() - started)} | figures
    marker.write_text(json.dumps(done, indent=2) + "\n")


def _install(output: Path) -> None:
    for name in MODELS:
        target = WEIGHTS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(output / name, target, ignore=shutil.ignore_patterns("done.json", "checkpoints"))
    shutil.copy(output / "figures.json", WEIGHTS / "figures.json")


def _section(batch: int, learning_rate: float, tower_rate: float | None = None) -> TrainingSection:
    return TrainingSection(
        global_batch=batch,
        micro_batch=batch,
        max_length=1024,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_share=0.05,
        min_lr_share=0.05,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        precision="fp32",
        zero_stage=0,
        vision_tower=LayersSection(learning_rate=tower_rate),
    )


def _make_tokenizer(folder: Path) -> dict[str, Any]:
    from adamllm_ray.pocket.curriculum import vocabulary

    tokenizer = build_tokenizer(vocabulary(), 1000)
    tokenizer.save_pretrained(folder)
    return {"vocabulary": len(tokenizer)}


def _load_tokenizer(output: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(output / "tokenizer")


def _make_tower(folder: Path, seed: int) -> dict[str, Any]:
    """Warm-up of the vision tower with linear heads; the heads are thrown away."""
    from safetensors.torch import save_file

    from adamllm_ray.pocket.tower import TowerWarmup, WarmupSteps, held_out

    model = build_vlm(len(_load_tokenizer(folder.parent)), Size(), seed)
    warmup = TowerWarmup(model.model.vision_tower)
    section = _section(128, 2e-3)
    loss = _run(folder, "tower", warmup, section, WarmupSteps(STEPS["tower"], seed, 3))
    save_file(warmup.tower.state_dict(), folder / "tower.safetensors")
    return {"loss": loss, "held_out": held_out(warmup)}


def _make_base(folder: Path, seed: int) -> dict[str, Any]:
    """Looking up among marks, questions about marks, image tokens that are like marks, and then pictures."""
    from safetensors.torch import load_file

    from adamllm_ray.models.chat import ChatFormat
    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.curriculum import Curriculum, Steps
    from adamllm_ray.pocket.marks import MarkReader, MarkSchool, MarkSteps
    from adamllm_ray.pocket.tower import WarmupSteps, WordAlignment, held_out
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.parts import prepare_parts

    tokenizer = _load_tokenizer(folder.parent)
    chat = ChatFormat(tokenizer)
    processor = build_processor(tokenizer, Size())
    model = build_vlm(len(tokenizer), Size(), seed)
    begin_by_saying(model, tokenizer)
    model.model.vision_tower.load_state_dict(load_file(folder.parent / "tower" / "tower.safetensors"))
    marks, reader = MarkSchool(chat), MarkReader(model)
    losses = {}
    for name, maker, rate in (("recall", marks.recall, 2e-3), ("questions", marks.questions, 1e-3)):
        section = _section(16, rate)
        losses[name] = _run(folder, name, reader, section, MarkSteps(f"{name}-{seed}", maker, section, STEPS[name]))
    aligned = WordAlignment(model, tokenizer)
    parts = [
        {"params": list(aligned.tower.parameters()), "lr": 3e-4},
        {"params": list(aligned.projector.parameters()), "lr": 2e-3},
    ]
    _run(folder, "words", aligned, _section(128, 2e-3), WarmupSteps(STEPS["words"], seed, 4), parts)
    words = held_out(aligned)
    section = _section(30, 1e-3, 2e-4)
    collator = Collator(processor, 1024, cache_bytes=2 << 30)
    steps = Steps(f"base-{seed}", Curriculum(chat).general, collator, section, STEPS["base"])
    losses["base"] = _run(folder, "base", model, section, steps, prepare_parts(model, section).groups)
    export_model(model, processor, folder)
    return {"losses": losses, "words": words}


def _make_synthesizer(folder: Path, base: Path, seed: int) -> dict[str, Any]:
    """The base model tuned on general seed data, every token after the caption learnt (paper section 3.1.1)."""
    from adamllm_ray.models.chat import ChatFormat
    from adamllm_ray.models.checkpoint import export_model, load_vlm
    from adamllm_ray.pocket.curriculum import Curriculum, Steps
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.parts import prepare_parts

    model, processor = load_vlm(base, "float32")
    school = Curriculum(ChatFormat(processor.tokenizer))
    section = _section(24, 7e-4, 1e-4)
    collator = Collator(processor, 1024, cache_bytes=1 << 30)
    steps = Steps(f"seed-{seed}", school.seed, collator, section, STEPS["synthesizer"])
    loss = _run(folder, "synthesizer", model, section, steps, prepare_parts(model, section).groups)
    export_model(model, processor, folder)
    return {"loss": loss}


def _make_judge(folder: Path, base: Path, seed: int) -> dict[str, Any]:
    """The base model's language half, tuned to compare two answers."""
    from adamllm_ray.models.chat import ChatFormat
    from adamllm_ray.models.checkpoint import export_model, load_vlm
    from adamllm_ray.pocket.curriculum import Curriculum, Steps
    from adamllm_ray.training.collate import Collator

    vlm, processor = load_vlm(base, "float32")
    tokenizer = processor.tokenizer
    model = build_judge(len(tokenizer), Size(), seed)
    model.model.load_state_dict(vlm.model.language_model.state_dict())
    model.lm_head.load_state_dict(vlm.lm_head.state_dict())
    school = Curriculum(ChatFormat(tokenizer))
    section = _section(64, 1e-3)
    steps = Steps(f"judge-{seed}", school.judged, Collator(tokenizer, 1024), section, STEPS["judge"])
    loss = _run(folder, "judge", model, section, steps)
    export_model(model, tokenizer, folder)
    return {"loss": loss}


def _run(folder: Path, name: str, model: Any, section: TrainingSection, source: Any, groups: Any = None) -> float:
    """Train, with a checkpoint every few steps to continue from. Returns the mean loss of the last 50 steps."""
    from adamllm_ray.training.loop import StepLoop, StepReport

    loop = StepLoop(model, section, steps=source.steps, groups=groups)
    place = folder / "checkpoints" / name
    losses: list[float] = []
    start = 0
    if (place / "newest.json").exists():
        state = json.loads((place / "newest.json").read_text())
        loop.load(place / f"step-{state['step']}")
        start, losses = state["step"], state["losses"]

    def after(report: StepReport) -> None:
        losses.append(report.loss)
        bar.update(report.step, f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}")
        if report.step % CHECKPOINT_EVERY == 0 or report.step == source.steps:
            _save(loop, place, report.step, losses)

    with progress.task(name, source.steps) as bar:
        loop.run(_fed(loop.engine.device, source, start), start=start, on_step=after)
    return round(sum(losses[-50:]) / len(losses[-50:]), 4)


def _fed(device: Any, source: Any, start: int) -> Any:
    """The source itself. A GPU is faster than one process makes examples: for it, one that makes them in several."""
    workers = min(LOADERS, (os.cpu_count() or 1) - 1)
    if device.type != "cuda" or workers < 2:
        return source
    from torch.utils.data import DataLoader

    steps: Any = _Steps(source, start)
    return _Fed(source.steps, iter(DataLoader(steps, batch_size=None, num_workers=workers, collate_fn=_as_it_is)))


class _Steps:
    """A source as a torch Dataset: what is left of its steps."""

    def __init__(self, source: Any, start: int) -> None:
        self.source, self.start = source, start

    def __len__(self) -> int:
        return int(self.source.steps) - self.start

    def __getitem__(self, index: int) -> Any:
        return self.source.load(self.start + index)


class _Fed:
    """A `BatchSource` over what a DataLoader hands out, which is asked for step by step."""

    def __init__(self, steps: int, batches: Iterator[Any]) -> None:
        self.steps, self._batches = steps, batches

    def load(self, step: int) -> Any:
        """The next step's micro-batches."""
        return next(self._batches)


def _as_it_is(batches: Any) -> Any:
    return batches


def _save(loop: Any, place: Path, step: int, losses: list[float]) -> None:
    loop.save(place / f"step-{step}")
    pointer = place / "newest.json"
    pointer.with_suffix(".tmp").write_text(json.dumps({"step": step, "losses": losses[-50:]}))
    pointer.with_suffix(".tmp").replace(pointer)
    for old in place.glob("step-*"):
        if old.name != f"step-{step}":
            shutil.rmtree(old)
