"""The configuration of a run: one strict section per stage, YAML in, JSON schema out.

    adamllm config --schema            the whole schema
    adamllm run CONFIG --set training.learning_rate=1e-5 --set data.path=/data/chips

Unknown keys, wrong types and impossible values are all reported at once, each with the nearest known key or the
limit that was broken, before Ray starts. Configuration is data: YAML tags and Python paths are refused by the
safe loader. No torch, ray or vllm is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from adamllm_ray.config_engine import Count, Positive, Section, Share, Weight
from adamllm_ray.config_engine import EngineSection as EngineSection
from adamllm_ray.config_text import apply_override, explain, parse_yaml, refuse_secrets
from adamllm_ray.config_training import LoraSection as LoraSection
from adamllm_ray.config_training import PartSection as PartSection
from adamllm_ray.config_training import TrainingSection as TrainingSection
from adamllm_ray.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20


class S3Section(Section):
    """How to reach an S3-compatible store. Keys are not configuration: they come from the usual AWS sources

    (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, a pod's or an instance's role).
    """

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+/?$",
        description="URL of an S3-compatible server; AWS_ENDPOINT_URL, else Amazon's, if absent.",
    )
    region: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,40}$", description="AWS_REGION, else looked up, if absent."
    )
    anonymous: bool = Field(default=False, description="Send no credentials: for public buckets.")
    request_timeout_s: Positive = Field(default=30.0, description="Seconds without an answer before trying again.")
    attempts: Count = Field(default=10, description="Tries per request, with growing, random pauses.")


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name shown in reports.")
    output: str = Field(description="Run folder: a local path or s3://bucket/prefix.")
    s3: S3Section = S3Section()
    s3_lock: bool = Field(default=True, description="Off for a store without conditional writes: no lock on S3 then.")
    s3_lease_s: Positive = Field(default=60.0, description="A driver not heard of for so many seconds loses an S3 run.")
    seed: int = Field(default=0, ge=0, description="Every random draw is keyed on (seed, purpose, record id).")


class ImageLimits(Section):
    """Checked on the header, before any pixel is decoded."""

    max_bytes: Count = 20 << 20
    max_pixels: Count = 40_000_000
    min_side: Count = Field(default=16, description="Pixels.")
    max_aspect: Positive = 50.0


class Columns(Section):
    """Column names of a Parquet or Hugging Face source."""

    image: str = Field(default="image", description="Encoded bytes, or a {bytes, path} struct, or a path or URI.")
    caption: str = "caption"
    key: str | None = Field(default=None, description="A column that names the row; row number if absent.")


class WebDatasetSection(Section):
    """Which members of a tar shard belong to a pair. A suffix starts at the first dot of the file name."""

    image: list[str] = Field(
        default_factory=lambda: ["jpg", "jpeg", "png", "webp"], description="Suffixes of images, in lower case, no dot."
    )
    caption: str = Field(default="txt", description="Suffix of the caption; one that ends in 'json' holds an object.")
    caption_field: str = Field(default="caption", description="Name of the caption in a JSON member.")


class DataSection(Section):
    """The image-caption pairs."""

    format: Literal["sharegpt", "parquet", "webdataset", "huggingface", "pocket"] = "sharegpt"
    path: str = Field(
        default="",
        description="A local path or s3://bucket/prefix. sharegpt: a .json or .jsonl file, or a folder that holds "
        "exactly one. parquet, webdataset: a file or a folder. huggingface: what save_to_disk wrote. pocket: empty.",
    )
    s3: S3Section = S3Section()
    split: str | None = Field(default=None, description="huggingface: which split of a DatasetDict.")
    webdataset: WebDatasetSection = WebDatasetSection()
    image_folder: str | None = Field(
        default=None, description="Where image paths start; the data file's folder if absent."
    )
    columns: Columns = Columns()
    images: ImageLimits = ImageLimits()
    max_caption_chars: Count = 20_000
    limit: Count | None = Field(default=None, description="Read only this many pairs.")
    rows_per_shard: Count = Field(default=1024, description="Upper bound; shards are also cut at shard_bytes.")
    shard_bytes: Count = Field(default=256 << 20, description="Size that shards are cut at: about equal but the last.")
    near_duplicates: int | None = Field(
        default=None,
        ge=0,
        le=7,
        description="Mark images whose perceptual hash differs from an earlier one's in at most so many of 64 bits, "
        "whatever their captions; 4 finds rescaled and recompressed copies. Off if absent.",
    )
    max_failed_share: Share = Field(default=0.05, description="Stop when more than this share of the rows fails.")


class ModelsSection(Section):
    """Models in Hugging Face layout (safetensors only).

    A local folder; ``s3://bucket/folder`` or ``org/name@<40 hex revision>`` of the Hugging Face hub, which each node
    fetches once into its cache (ADAMLLM_MODEL_CACHE); or 'pocket:NAME', a model that ships with the package.
    """

    base: str = Field(default="pocket:base", description="The VLM that post-training starts from.")
    synthesizer: str = Field(default="pocket:synthesizer", description="The VLM that writes tasks.")
    judge: str = Field(default="pocket:judge", description="The language model that compares the two answers.")


class SynthesisSection(Section):
    """Task synthesis by the synthesizer VLM (paper section 3.1)."""

    engine: EngineSection = EngineSection()
    max_new_tokens: Count = 512
    temperature: Weight = Field(default=0.0, description="0 = greedy, the paper's setting.")
    rows_per_block: Count = Field(default=64, description="Unit of resume: a kill costs at most the blocks in flight.")
    max_failed_share: Share = 0.05
    candidates: Count = Field(
        default=1,
        description="Responses sampled per image, all judged; the kept one with the highest P(Yes) becomes the task.",
    )
    retry_temperature: Positive | None = Field(
        default=None, description="Ask once more at this temperature when no response of a row parses. Absent: do not."
    )
    stall_minutes: Positive = Field(
        default=30.0, description="Stop when nothing moves for so long; must be longer than a replica takes to start."
    )

    @property
    def attempts_kept(self) -> bool:
        """Whether the `attempts` column is filled: a row may have more than one response."""
        return self.candidates > 1 or self.retry_temperature is not None

    @model_validator(mode="after")
    def _sampling(self) -> SynthesisSection:
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError(
                "synthesis: candidates above 1 need a temperature above 0, or all of them are the same; "
                "for example synthesis.temperature=0.7"
            )
        if self.retry_temperature is not None and self.retry_temperature <= self.temperature:
            raise ValueError(
                f"synthesis: retry_temperature ({self.retry_temperature}) must be above temperature "
                f"({self.temperature}); leave it out for no second try"
            )
        return self


class JudgeSection(Section):
    """Consistency filter (paper section 3.1.2)."""

    engine: EngineSection = EngineSection()
    keep: Literal["threshold", "exact"] = Field(
        default="threshold",
        description="threshold: keep a task when P(Yes) >= threshold. exact: when Yes is the most likely label, "
        "the paper's rule.",
    )
    threshold: Share = Field(
        default=0.5, description="Of keep: threshold. P(Yes) is among Yes / No / Open; all three are stored."
    )
    few_shot: bool = Field(
        default=True, description="Put six worked examples before each question; off for a judge tuned for it."
    )


class ReplaySource(Section):
    """A dataset outside the run that is mixed in, in the ShareGPT layout."""

    name: str
    path: str
    image_folder: str | None = None
    weight: Weight = Field(description="Examples of this source per domain example.")


class MixtureSection(Section):
    """What the model is trained on: one example per record, drawn by hash of (seed, epoch, id).

    A record with a kept task becomes `both` (caption and task as one conversation, the paper's single stage),
    `caption` or `task`, with probabilities proportional to these weights. A record without one is caption only.
    """

    both: Weight = 1.0
    caption: Weight = 0.0
    task: Weight = 0.0
    untasked: Share = Field(
        default=1.0, description="Share of the records without a kept task that train as caption only."
    )
    replay: list[ReplaySource] = Field(default_factory=list)
    tolerance: Share = Field(default=0.05, description="Allowed distance between requested and realised shares.")

    @model_validator(mode="after")
    def _something(self) -> MixtureSection:
        if self.both + self.caption + self.task <= 0:
            raise ValueError("mixture: at least one of both, caption, task must be above 0")
        return self


class EvaluationSection(Section):
    """Scoring of base and adapted model on the same questions, in vLLM."""

    engine: EngineSection = EngineSection()
    task: str = Field(
        default="",
        description="A Parquet or JSONL file with columns image, question, answer, type; 'pocket' for the satellite "
        "test set; empty to skip evaluation.",
    )
    limit: Count | None = None
    max_new_tokens: Count = 64
    bootstrap_samples: Count = 2000


class RunConfig(Section):
    """A whole run. Sections that are absent take their defaults."""

    run: RunSection
    data: DataSection = DataSection()
    models: ModelsSection = ModelsSection()
    synthesis: SynthesisSection = SynthesisSection()
    judge: JudgeSection = JudgeSection()
    mixture: MixtureSection = MixtureSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()


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
    except (OSError, UnicodeDecodeError) as error:
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
        return RunConfig.model_validate_json(json.dumps(tree))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise ConfigError(explain(error, RunConfig)) from None
        raise ConfigError(f"the configuration holds a value that is not plain data: {error}") from error


def config_schema() -> dict[str, Any]:
    """JSON schema of RunConfig."""
    return RunConfig.model_json_schema()


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
