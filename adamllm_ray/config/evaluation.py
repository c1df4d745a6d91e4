"""The section of the evaluation stage: which questions, which backend, how long the answers may get.

evaluation:
  task: pocket                                             # the short form of  tasks: [{name: pocket}]

evaluation:
  tasks:
    - { name: slake, path: /data/biomed-VQA-benchmark }    # a benchmark that is known by name
    - { name: ours, path: q.parquet, metric: recall }      # any other name: a table of your own
  general:                                                 # asked before and after: what was forgotten?
    - { name: everyday, path: general.parquet }
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from adamllm_ray.config.engine import EngineSection
from adamllm_ray.config.fields import Count, Section

POCKET, POCKET_GENERAL, OWN = "pocket", "pocket_general", "own"
SHIPPED = (POCKET, POCKET_GENERAL)  # made by the package: no files
POCKET_SPLITS = ("test", "validation")
BENCHMARKS = (
    "slake",
    "pathvqa",
    "vqa_rad",
    "pmc_vqa",
    "recipe1m",
    "nutrition5k",
    "food101",
    "foodseg103",
    "clrs",
    "uc_merced",
    "floodnet",
    "nwpu_captions",
)
MetricName = Literal[
    "auto",
    "yes_no",
    "recall",
    "choice",
    "numbered_choice",
    "names_recall",
    "names_f1",
    "rouge_l",
    "category",
    "exact",
]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
MAX_NEW_TOKENS = 64  # of an answer, where neither the configuration nor a benchmark's protocol says


class TaskSection(Section):
    """A set of questions, each scored under the strict and the paper's metrics."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$",
        description=f"A benchmark ({', '.join(BENCHMARKS)}), 'pocket' (satellite chips), 'pocket_general' (the "
        "pictures that the pocket models come from), or a name of your own for your own table.",
    )
    path: str = Field(
        default="",
        description="A Parquet or JSONL file, a folder of Parquet files, or a folder that datasets' save_to_disk() "
        "wrote; local or s3://. Empty for 'pocket' and 'pocket_general'.",
    )
    split: str | None = Field(
        default=None, description="Which split of a folder of several, if none has the usual name."
    )
    metric: MetricName | None = Field(
        default=None, description="Of your own table, for rows whose 'metric' column does not say; 'auto' if absent."
    )
    limit: Count | None = Field(default=None, description="Ask only this many; evaluation.limit if absent.")
    max_new_tokens: Count | None = Field(default=None, description="evaluation.max_new_tokens if absent.")

    @property
    def benchmark(self) -> bool:
        """It is one of the published ones, whose layout and metrics are known."""
        return self.name in BENCHMARKS

    @property
    def shipped(self) -> bool:
        """Its questions are made by the package and not read from files."""
        return self.name in SHIPPED

    @model_validator(mode="after")
    def _source(self) -> TaskSection:
        splits = (None, *POCKET_SPLITS) if self.name == POCKET else (None,)
        if self.shipped and (self.path or self.metric or self.split not in splits):
            more = f"; split is {' or '.join(POCKET_SPLITS)}, the first if absent" if self.name == POCKET else ""
            what = "path and metric" if self.name == POCKET else "path, split and metric"
            raise ValueError(f"'{self.name}' ships with the package and has its own metrics: leave {what} out{more}")
        if not self.shipped and not self.path:
            what = "the released benchmark's folder" if self.benchmark else "your Parquet or JSONL file"
            raise ValueError(f"'{self.name}' needs path: {what}{_spelling(self.name)}")
        if self.benchmark and self.metric:
            raise ValueError(
                f"'{self.name}' has the metrics of its protocol: leave metric out, or give the task a name of your own"
            )
        return self


class AskedTask(NamedTuple):
    """A task, and the name of the field that it stands in, for messages."""

    field: str
    task: TaskSection
    general: bool


class EvaluationSection(Section):
    """Scoring of base and adapted model on the same questions."""

    engine: EngineSection = EngineSection()
    backend: Literal["vllm", "transformers", "auto"] = Field(
        default="vllm",
        description="What runs the models. transformers: slower, for families that vLLM does not have; auto: vLLM for "
        "those that it has.",
    )
    task: str = Field(
        default="",
        description="Short form of tasks for a single one: a Parquet or JSONL file with columns image, question, "
        "answer, type; 'pocket' for the satellite test set.",
    )
    tasks: list[TaskSection] = Field(
        default_factory=list, description="What the models are compared on. Empty, and no task: no evaluation."
    )
    general: list[TaskSection] = Field(
        default_factory=list,
        description="The forgetting check: asked and scored in the same way, shown apart, in no average of the domain.",
    )
    limit: Count | None = Field(
        default=None, description="Ask at most so many questions of each task: the same ones whatever run.seed is."
    )
    max_new_tokens: Count | None = Field(
        default=None,
        description=f"Absent: 256 to 1024 as a benchmark's protocol says, {MAX_NEW_TOKENS} for other tasks.",
    )
    bootstrap_samples: Count = 2000

    @property
    def asked(self) -> list[AskedTask]:
        """Every task, those of the domain first. Empty: there is nothing to evaluate."""
        short = []
        if self.task:
            one = TaskSection(name=POCKET) if self.task == POCKET else TaskSection(name=OWN, path=self.task)
            short = [AskedTask("evaluation.task", one, general=False)]
        return [*short, *_numbered("tasks", self.tasks), *_numbered("general", self.general)]

    @model_validator(mode="after")
    def _no_two_ways(self) -> EvaluationSection:
        if self.task and self.tasks:
            one = "{name: pocket}" if self.task == POCKET else f"{{name: {OWN}, path: {self.task}}}"
            raise ValueError(
                f"evaluation: task is the short form of tasks; give one of them: add {one} to tasks, drop task"
            )
        if self.general and not self.task and not self.tasks:
            raise ValueError("evaluation: general is asked beside the tasks of the domain: give evaluation.tasks, too")
        names = [asked.task.name for asked in self.asked]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"evaluation: {', '.join(twice)} stands twice in tasks and general: answers are kept by name"
            )
        return self

    @model_validator(mode="after")
    def _what_runs(self) -> EvaluationSection:
        if self.engine.lora:
            raise ValueError(
                "evaluation: engine.lora would put one adapter on both models; name it as models.adapted instead"
            )
        if self.backend != "vllm" and self.engine.gpus_per_replica > 1:
            raise ValueError(
                f"evaluation: backend={self.backend} runs a replica on one GPU: set engine.gpus_per_replica to 1, and "
                "engine.replicas to as many as you have"
            )
        return self


def _numbered(field: str, tasks: Sequence[TaskSection]) -> list[AskedTask]:
    return [AskedTask(f"evaluation.{field}.{n}", task, field == "general") for n, task in enumerate(tasks)]


def _spelling(name: str) -> str:
    """Near enough to a benchmark's name that it may be meant."""
    import difflib

    close = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0.75)
    return f" (or did you mean '{close[0]}'?)" if close and close[0] != name else ""
