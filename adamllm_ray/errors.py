"""Every exception that adamllm_ray raises on purpose, in one tree.

::

    AdamLLMError                     anything a user can act on; the CLI prints it without a traceback
    ├── ConfigError                  exit 2: a key, a type or a value in the configuration
    ├── SourceError                  exit 2: the data source cannot be read at all (a bad *row* is a verdict, not this)
    ├── ModelError                   exit 2: a model folder that cannot do what the stage asks
    ├── FingerprintMismatch          exit 2: the folder belongs to another run; names the differing keys
    ├── RunLocked                    exit 75: another driver works on this run folder, or took it from this one
    ├── StorageError                 exit 75: disk full, object store gone; free it and run the same command again
    ├── RowAccountingError           exit 1: rows in != kept + rejected + failed, or an id twice: never continue
    ├── TooManyFailures              exit 75: the failed share passed its ceiling
    ├── ReplicasLost                 exit 75: engine replicas die again and again, or none comes up
    ├── MixtureDriftError            exit 1: realised shares left the tolerance around the requested ones
    ├── TrainingError                exit 75: training ended without a finished model
    ├── ClusterError                 exit 75: a cluster cannot be reached, or lost the job that was submitted to it
    ├── ImageRefused                 carries a Verdict; turned into a column, never leaves a row function
    └── ExampleRefused               the same for a training example: nothing to learn from it, or too long

Programming mistakes stay ``assert`` or plain Python exceptions. Checks that guard safety are ``if ...: raise``,
because ``python -O`` removes asserts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from adamllm_ray.data.verdicts import Verdict


def foreign(text: object, limit: int = 300) -> str:
    """Text from outside as a message or a log line may hold it: one line, no control characters, not endless."""
    spelt = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1])
    return spelt if len(spelt) <= limit else f"{spelt[:limit]}..."


class AdamLLMError(Exception):
    """Base class. ``exit_code`` is what the CLI and the jobs return (sysexits: 75 = try again, resumable)."""

    exit_code: ClassVar[int] = 1


class ConfigError(AdamLLMError):
    """A configuration key, type or value is wrong; the message names the key and the fix."""

    exit_code = 2


class SourceError(AdamLLMError):
    """The data source as a whole cannot be read."""

    exit_code = 2


class ModelError(AdamLLMError):
    """A model folder is missing, is not a vision-language model, or lacks a part that is needed."""

    exit_code = 2


class FingerprintMismatch(AdamLLMError):
    """A stage folder was made by other inputs, models, prompts or code than this run's."""

    exit_code = 2

    def __init__(self, stage: str, differing: dict[str, tuple[object, object]]) -> None:
        self.stage = stage
        self.differing = differing
        lines = "\n".join(f"  {key}: folder has {old!r}, this run has {new!r}" for key, (old, new) in differing.items())
        super().__init__(
            f"the folder of stage '{stage}' belongs to another run; these differ:\n{lines}\n"
            "Use another run.output, restore the old values, or pass --force-new to start the stage again."
        )

    def __reduce__(self) -> tuple[type[FingerprintMismatch], tuple[str, dict[str, tuple[object, object]]]]:
        return type(self), (self.stage, self.differing)


class RunLocked(AdamLLMError):
    """Another process is working on the same run folder; when it has ended, or died, the same command continues."""

    exit_code = 75


class StorageError(AdamLLMError):
    """Reading or writing the run folder failed (no space, no permission, object store unreachable)."""

    exit_code = 75


class RowAccountingError(AdamLLMError):
    """The row identity ``rows in == kept + rejected + failed`` does not hold, or ids are not unique."""


class TooManyFailures(AdamLLMError):
    """The share of failed rows passed the configured ceiling."""

    exit_code = 75


class ReplicasLost(AdamLLMError):
    """A batch outlived too many replicas, or nothing moved for too long; what is finished is kept."""

    exit_code = 75


class MixtureDriftError(AdamLLMError):
    """Realised mixture shares differ from the requested ones by more than the tolerance."""


class TrainingError(AdamLLMError):
    """Training stopped before it was finished; the same command continues from the newest valid checkpoint."""

    exit_code = 75


class ClusterError(AdamLLMError):
    """Kubernetes or Ray did not answer, or the job is gone; what it finished is in the run folder."""

    exit_code = 75


class ImageRefused(AdamLLMError):
    """An image did not pass the limits; ``verdict`` says which one."""

    def __init__(self, verdict: Verdict, detail: str = "") -> None:
        self.verdict = verdict
        self.detail = detail
        super().__init__(f"{verdict}: {detail}" if detail else str(verdict))


class ExampleRefused(AdamLLMError):
    """A record gives no usable training example; ``verdict`` says why. Counted by the collator, never ignored."""

    def __init__(self, verdict: Verdict, detail: str = "") -> None:
        self.verdict = verdict
        self.detail = detail
        super().__init__(f"{verdict}: {detail}" if detail else str(verdict))
