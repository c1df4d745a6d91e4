"""What a search would fail at after hours, refused before Ray starts.

check(config, run)      ConfigError: tuning.metric: 'precision' is not produced; there are average, overall, ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from adamllm_ray.config import RunConfig
from adamllm_ray.config.evaluation import POCKET
from adamllm_ray.config.tuning import FORMS, REPLAY
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation.tasks import Question, load_questions, task_questions
from adamllm_ray.tuning.settings import configured, put, section_of, trial_config
from adamllm_ray.tuning.space import Parameters, Space

MIXTURE_FIELDS = tuple(f"mixture.{name}" for name in FORMS)
ALWAYS = ("average", "overall")


def check(config: RunConfig) -> None:
    """Refuse a search that cannot work.

    Raises:
        ConfigError: naming the field and the fix.
        SourceError: validation or test questions cannot be read.
        ModelError: a base model that cannot be trained.
    """
    section = section_of(config)
    _names(config)
    if not section.validation:
        raise ConfigError(
            "tuning.validation is empty: name the questions that trials are compared on, other ones than evaluation's"
        )
    _splits(config)
    for parameters in extremes(config):
        settings = trial_config(config, parameters)
        if section.full_trials:
            trial_config(config, parameters, full=True)
    from adamllm_ray.training.trainer import check as check_training

    check_training(settings)
    _questions(config, settings)


def extremes(config: RunConfig) -> Iterator[Parameters]:
    """The recipe of the paper, corners of the mixture, and both ends (or all values) of every field."""
    section = section_of(config)
    space = Space.of(section)
    recipe = space.recipe(configured(config, section.fields))
    yield recipe
    for corner in space.simplex.corners() if space.simplex else []:
        yield Parameters(corner, recipe.fields)
    for name, field in section.fields.items():
        low, high = (int(end or 0) if field.integer else end for end in (field.low, field.high))
        for value in field.values if field.values is not None else (low, high):
            yield Parameters(recipe.weights, recipe.fields | {name: value})


def _names(config: RunConfig) -> None:
    """Sources and fields that there are, each searched in one way."""
    section = section_of(config)
    there = {f"{REPLAY}{source.name}" for source in config.mixture.replay}
    unknown = [name for name in section.sources if name.startswith(REPLAY) and name not in there]
    if unknown:
        have = f"there are {', '.join(sorted(there))}" if there else "mixture.replay is empty"
        raise ConfigError(f"tuning.sources: '{unknown[0]}' is not in mixture.replay; {have}")
    for where, names in (("tuning.fields", section.fields), ("tuning.proxy", section.proxy)):
        for name in names:
            put(config.model_dump(mode="json"), name, None, where)
            if name in MIXTURE_FIELDS or name.startswith("mixture.replay"):
                raise ConfigError(f"{where}: '{name}' is what tuning.sources is for: name it there")


def _splits(config: RunConfig) -> None:
    """The test questions stay unseen."""
    section = section_of(config)
    for number, task in enumerate(section.validation):
        where = f"tuning.validation.{number}"
        if task.name == POCKET and task.split != "validation":
            raise ConfigError(f"{where}: without split: validation, 'pocket' asks the test questions")
        if task.name == POCKET and config.data.format == POCKET and config.data.split != "train":
            raise ConfigError(f"{where}: the training chips lie in the validation region: set data.split to 'train'")
        if task.split == "test" or (task.benchmark and task.split is None):
            raise ConfigError(
                f"{where}: this is the test split of '{task.name}'; name one that is not, or a table of your own"
            )
        for asked in config.evaluation.asked:
            if asked.task.name != POCKET and (asked.task.path, asked.task.split) == (task.path, task.split):
                raise ConfigError(
                    f"{where}: the test split is named as validation: {asked.field} has the same path and split. "
                    "A search on the test questions makes its score worth nothing"
                )


def _questions(config: RunConfig, settings: RunConfig) -> None:
    """The metric is produced, and no question is asked in both sets. Reads both once."""
    section = section_of(config)
    columns, known = set(), set()
    for question in load_questions(settings.evaluation, config.data.s3, config.data.images):
        if question.verdict is Verdict.OK:
            columns.add(question.type)
            known.add(_identity(question))
    if section.metric not in (*ALWAYS, *columns):
        raise ConfigError(
            f"tuning.metric: '{section.metric}' is not produced by tuning.validation; there are "
            f"{', '.join((*ALWAYS, *sorted(columns)))}"
        )
    for asked in config.evaluation.asked:
        both = sum(_identity(one) in known for one in task_questions(asked, config.data.s3, config.data.images))
        if both:
            raise ConfigError(
                f"tuning.validation: {both} of its questions are also asked by {asked.field}: the test questions must "
                "not be searched on; take them out of one of the two"
            )


def _identity(question: Question) -> bytes:
    digest = hashlib.blake2b(question.image or b"", digest_size=16)
    digest.update(question.question.encode("utf-8", "surrogatepass"))
    return digest.digest()
