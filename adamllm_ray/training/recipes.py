"""Which trainings a run consists of: one, two after each other, or that of a synthesizer.

A training is a `Pass`: rows of a finished stage, a model, settings and a folder of the run. The trainer knows nothing
of recipes; it takes the passes in order, and each begins with what the one before has exported.
"""

from __future__ import annotations

from dataclasses import dataclass

from adamllm_ray.config import MixtureSection, PartSection, RunConfig, TrainingSection
from adamllm_ray.data.run import RunFolder

TRAIN, CAPTIONS, SYNTHESIZER = "train", "train_captions", "synthesizer"
SYNTHESIZED, SEED = "synthesize", "seed"


@dataclass(frozen=True, slots=True)
class Pass:
    """One training.

    Attributes:
        name: its folder inside the run.
        source: the stage whose rows train.
        config: the run's, with the base model, mixture and training section of this pass.
        first: the model that the first of the passes begins with: of the same architecture, and there from the start.
    """

    name: str
    source: str
    config: RunConfig
    first: str


def passes(config: RunConfig, run: RunFolder) -> list[Pass]:
    """The trainings behind ``train/model``, in order."""
    base, section = config.models.base, config.training
    if section.objective == "synthesizer":
        return [Pass(TRAIN, SEED, _changed(config, mixture=MixtureSection()), base)]
    if section.recipe == "single_stage":
        return [Pass(TRAIN, SYNTHESIZED, config, base)]
    captions = config.mixture.model_copy(
        update={"both": 0.0, "caption": 1.0, "task": 0.0, "untasked": 1.0, "replay": [], "seed_tasks": 0.0}
    )
    tasks = config.mixture.model_copy(update={"both": 0.0, "caption": 0.0, "task": 1.0, "untasked": 0.0})
    first = _changed(config, mixture=captions, training=_captions_section(section, base))
    models = config.models.model_copy(update={"base": f"{run.stage(CAPTIONS).uri}/model"})
    mixture = config.mixture if section.two_stage.captions_again else tasks
    second = _changed(config, mixture=mixture, models=models)
    return [Pass(CAPTIONS, SYNTHESIZED, first, base), Pass(TRAIN, SYNTHESIZED, second, base)]


def synthesizer_pass(config: RunConfig) -> Pass:
    """The training behind ``synthesizer/model``."""
    models = config.models.model_copy(update={"base": config.seed.base})
    training = config.seed.training.model_copy(update={"objective": "synthesizer"})
    changed = _changed(config, models=models, training=training, mixture=MixtureSection())
    return Pass(SYNTHESIZER, SEED, changed, config.seed.base)


def _captions_section(section: TrainingSection, base: str) -> TrainingSection:
    """Settings of the first of two stages: for LLaVA models the projector alone learns, faster."""
    alone = section.two_stage.projector_only
    if not (_is_llava(base) if alone is None else alone):
        return section
    frozen = {"train": False}
    return section.model_copy(
        update={
            "language_model": section.language_model.model_copy(update=frozen),
            "vision_tower": section.vision_tower.model_copy(update=frozen),
            "projector": PartSection(
                learning_rate=section.two_stage.projector_learning_rate, weight_decay=section.projector.weight_decay
            ),
            "lora": None,
        }
    )


def _is_llava(base: str) -> bool:
    from adamllm_ray.models.checkpoint import read_config, resolve_model

    return str(read_config(resolve_model(base)).get("model_type", "")).startswith("llava")


def _changed(config: RunConfig, **sections: object) -> RunConfig:
    return config.model_copy(update=sections)
