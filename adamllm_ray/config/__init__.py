"""The configuration of a run: one strict section per stage, YAML in, JSON schema out.

    adamllm config --schema            the whole schema
    adamllm run CONFIG --set training.learning_rate=1e-5 --set data.path=/data/chips

Unknown keys, wrong types and impossible values are all reported at once, each with the nearest known key or the
limit that was broken, before Ray starts. Configuration is data: YAML tags and Python paths are refused by the
safe loader. No torch, ray or vllm is imported here.
"""

from adamllm_ray.config.data import Columns, DataSection, ImageLimits, S3Section, WebDatasetSection
from adamllm_ray.config.engine import EngineSection
from adamllm_ray.config.evaluation import AskedTask, EvaluationSection, TaskSection
from adamllm_ray.config.mixture import MixtureSection, ReplaySource
from adamllm_ray.config.quality import ContaminationSection, DataLicence, PublishSection, ReportSection
from adamllm_ray.config.run import (
    ModelsSection,
    RunConfig,
    RunSection,
    config_schema,
    dump_config,
    load_config,
    parse_config,
)
from adamllm_ray.config.synthesis import JudgeSection, SynthesisSection
from adamllm_ray.config.training import LayersSection, LoraSection, PartSection, TrainingSection
from adamllm_ray.config.tuning import FieldRange, SourceBounds, TuningSection

__all__ = [
    "AskedTask",
    "Columns",
    "ContaminationSection",
    "DataLicence",
    "DataSection",
    "EngineSection",
    "EvaluationSection",
    "FieldRange",
    "ImageLimits",
    "JudgeSection",
    "LayersSection",
    "LoraSection",
    "MixtureSection",
    "ModelsSection",
    "PartSection",
    "PublishSection",
    "ReplaySource",
    "ReportSection",
    "RunConfig",
    "RunSection",
    "S3Section",
    "SourceBounds",
    "SynthesisSection",
    "TaskSection",
    "TrainingSection",
    "TuningSection",
    "WebDatasetSection",
    "config_schema",
    "dump_config",
    "load_config",
    "parse_config",
]
