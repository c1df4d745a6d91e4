"""The whole configuration of a run, and how it is read from YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from adamllm_ray.config.conversations import ConversationSection
from adamllm_ray.config.data import DataSection, S3Section
from adamllm_ray.config.evaluation import EvaluationSection
from adamllm_ray.config.fields import Positive, Section
from adamllm_ray.config.mixture import MixtureSection
from adamllm_ray.config.quality import ContaminationSection, PublishSection, ReportSection
from adamllm_ray.config.seed import SeedSection
from adamllm_ray.config.synthesis import JudgeSection, SynthesisSection
from adamllm_ray.config.text import apply_override, explain, format_yaml, parse_yaml, refuse_secrets
from adamllm_ray.config.training import TrainingSection
from adamllm_ray.config.tuning import TuningSection
from adamllm_ray.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20
TUNED = "tuned"  # models.synthesizer: what this run's own stage makes


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name shown in reports.")
    output: str = Field(description="Run folder: a local path or s3://bucket/prefix.")
    upstream: str | None = Field(
        default=None,
        description="Another run folder, whose ingest, seed data, synthesizer and tasks this run uses as they are; it "
        "trains and evaluates only.",
    )
    s3: S3Section = S3Section()
    s3_lock: bool = Field(default=True, description="Off for a store without conditional writes: no lock on S3 then.")
    s3_lease_s: Positive = Field(default=60.0, description="A driver not heard of for so many seconds loses an S3 run.")
    seed: int = Field(default=0, ge=0, description="Every random draw is keyed on (seed, purpose, record id).")


class ModelsSection(Section):
    """Models in Hugging Face layout (safetensors only).

    A local folder; ``s3://bucket/folder`` or ``org/name@<40 hex revision>`` of the Hugging Face hub, which each node
    fetches once into its cache (ADAMLLM_MODEL_CACHE); or 'pocket:NAME', a model that ships with the package.
    """

    base: str = Field(default="pocket:base", description="The VLM that post-training starts from.")
    synthesizer: str = Field(
        default="pocket:synthesizer",
        description="The VLM that writes tasks; 'tuned': the one that this run tunes on its seed data (seed).",
    )
    judge: str = Field(default="pocket:judge", description="The language model that compares the two answers.")
    adapted: str | None = Field(
        default=None,
        description="What is evaluated against the base model: absent, what this run's train stage exported; another "
        "model, or a LoRA adapter of the base model (a folder with adapter_config.json), which is not merged.",
    )


class RunConfig(Section):
    """A whole run. Sections that are absent take their defaults."""

    run: RunSection
    data: DataSection = DataSection()
    seed: SeedSection = SeedSection()
    models: ModelsSection = ModelsSection()
    synthesis: SynthesisSection = SynthesisSection()
    judge: JudgeSection = JudgeSection()
    mixture: MixtureSection = MixtureSection()
    conversations: ConversationSection = ConversationSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    contamination: ContaminationSection = ContaminationSection()
    report: ReportSection = ReportSection()
    publish: PublishSection = PublishSection()
    tuning: TuningSection | None = Field(default=None, description="What `adamllm tune` searches; absent: nothing.")

    @property
    def tunes_synthesizer(self) -> bool:
        """Whether a stage of this run makes the synthesizer."""
        return self.models.synthesizer == self.own_synthesizer

    @property
    def own_synthesizer(self) -> str:
        """Folder that the stage 'synthesizer' exports to."""
        return f"{self.run.output.rstrip('/')}/synthesizer/model"

    def resolved(self) -> RunConfig:
        """With the folder in place of models.synthesizer: tuned."""
        if self.models.synthesizer != TUNED:
            return self
        models = self.models.model_copy(update={"synthesizer": self.own_synthesizer})
        return self.model_copy(update={"models": models})

    @model_validator(mode="after")
    def _seed_is_there(self) -> RunConfig:
        wanted = {
            "models.synthesizer: tuned": self.models.synthesizer in (TUNED, self.own_synthesizer),
            "training.objective: synthesizer": self.training.objective == "synthesizer",
            "mixture.seed_tasks": self.mixture.seed_tasks > 0,
        }
        for setting, asked in wanted.items():
            if asked and not self.seed.given:
                raise ValueError(f"{setting} needs seed data: set seed.captions, seed.precise and seed.informative")
        return self


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply ``key.sub=value`` overrides (values are YAML), validate.

    Raises:
        ConfigError: naming every wrong key at once, with the fix.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{file}: larger than {MAX_CONFIG_BYTES} bytes; this is not a run configuration")
        tree = parse_yaml(file.read_text("utf-8"), str(file))
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL byte
        raise ConfigError(f"cannot read the configuration {file}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected sections such as 'run:' and 'data:', found {type(tree).__name__}")
    for override in overrides:
        apply_override(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Validate a nested dictionary as a RunConfig. Raises ConfigError listing all problems."""
    try:
        refuse_secrets(tree)
        return RunConfig.model_validate_json(json.dumps(tree)).resolved()
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise ConfigError(explain(error, RunConfig)) from None
        raise ConfigError(f"the configuration holds a value that is not plain data: {error}") from error


def config_schema() -> dict[str, Any]:
    """JSON schema of RunConfig."""
    return RunConfig.model_json_schema()


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every default written out."""
    return format_yaml(config.model_dump(mode="json"))
