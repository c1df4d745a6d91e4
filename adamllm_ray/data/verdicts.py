"""Why a row is where it is: one closed list of verdicts.

A row is never dropped. It carries two verdicts: ``verdict`` is about the pair itself and is written by ingest;
``task_verdict`` is about the synthesized task and is written by synthesis. Each verdict falls into one of three
outcomes, and for every stage ``kept + rejected + failed == rows in`` (design rule 1):

* kept      the stage's product is there: a usable pair (ingest), a judged task (synthesis)
* rejected  the row is sound but the product is not: the caption still trains
* failed    the row cannot be used at all
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Outcome = Literal["kept", "rejected", "failed"]


class Verdict(StrEnum):
    """A machine-readable reason. Values are stored in Parquet: add to the list, never rename."""

    # ingest: the pair
    OK = "ok"
    DUPLICATE = "duplicate"  # same bytes and caption as an earlier row; marked, and not synthesized again
    NEAR_DUPLICATE = "near_duplicate"  # the image nearly is that of an earlier row (data.near_duplicates); as above
    ROW_UNREADABLE = "row_unreadable"  # malformed JSON line, record without the expected fields
    IMAGE_MISSING = "image_missing"
    IMAGE_EMPTY = "image_empty"
    IMAGE_UNRECOGNISED = "image_unrecognised"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_MANY_BYTES = "image_too_many_bytes"
    IMAGE_TOO_MANY_PIXELS = "image_too_many_pixels"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_EXTREME_ASPECT = "image_extreme_aspect"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_TOO_LONG = "caption_too_long"
    # synthesis: the task
    KEPT = "kept"
    NOT_SYNTHESIZED = "not_synthesized"  # the pair itself failed or is a duplicate, so no model was asked
    PROMPT_TOO_LONG = "prompt_too_long"
    RESPONSE_EMPTY = "response_empty"
    RESPONSE_TRUNCATED = "response_truncated"
    RESPONSE_UNPARSABLE = "response_unparsable"  # no question appears under both hints
    RESPONSE_REPEATS = "response_repeats"  # cut by the token limit while it wrote the same few tokens again and again
    RESPONSE_UNSAFE = "response_unsafe"  # the task holds a URL that the caption does not have
    JUDGED_INCONSISTENT = "judged_inconsistent"  # judge says No
    JUDGED_OPEN = "judged_open"  # judge says the question has no single answer
    ENGINE_ERROR = "engine_error"  # the engine refused this row; detail has its words
    ENGINE_DIED = "engine_died"  # the replica died each time it asked its engine for this row, at last for it alone
    # seed data: an image, or a record of one of the three files
    SEED_NO_CAPTION = "seed_no_caption"  # questions about an image that no usable caption record names
    SEED_NO_PRECISE = "seed_no_precise"
    SEED_NO_INFORMATIVE = "seed_no_informative"
    SEED_UNPAIRED = "seed_unpaired"  # both kinds, but no question has both answers
    SEED_UNANSWERED = "seed_unanswered"  # a question without an answer
    # training: the example made of the record
    EXAMPLE_TOO_LONG = "example_too_long"  # more tokens than training.max_length, image tokens included
    NOTHING_TO_LEARN = "nothing_to_learn"  # no token of the example would carry loss
    CONTAMINATED = "contaminated"  # also in an evaluation set, by a kind of match in contamination.exclude
    HELD_OUT = "held_out"  # seed data of the development split, to measure a synthesizer on
    NOT_DRAWN = "not_drawn"  # the mixture left it out in every epoch (mixture.untasked below 1)
    # tuning: the trial
    TRIAL_STOPPED = "trial_stopped"  # ended at a rung, by the budget, or with the driver
    TRIAL_FAILED = "trial_failed"

    @property
    def outcome(self) -> Outcome:
        """kept, rejected or failed; see the module docstring."""
        if self in _KEPT:
            return "kept"
        return "rejected" if self in _REJECTED else "failed"


_KEPT = frozenset({Verdict.OK, Verdict.KEPT})
_REJECTED = frozenset(
    {
        Verdict.DUPLICATE,
        Verdict.NEAR_DUPLICATE,
        Verdict.RESPONSE_EMPTY,
        Verdict.RESPONSE_TRUNCATED,
        Verdict.RESPONSE_UNPARSABLE,
        Verdict.RESPONSE_REPEATS,
        Verdict.RESPONSE_UNSAFE,
        Verdict.JUDGED_INCONSISTENT,
        Verdict.JUDGED_OPEN,
        Verdict.PROMPT_TOO_LONG,
        Verdict.SEED_NO_CAPTION,
        Verdict.SEED_NO_PRECISE,
        Verdict.SEED_NO_INFORMATIVE,
        Verdict.SEED_UNPAIRED,
        Verdict.EXAMPLE_TOO_LONG,
        Verdict.NOTHING_TO_LEARN,
        Verdict.HELD_OUT,
        Verdict.NOT_DRAWN,
        Verdict.CONTAMINATED,
        Verdict.TRIAL_STOPPED,
    }
)


def count_outcomes(verdicts: dict[str, int]) -> dict[Outcome, int]:
    """Fold counts per verdict into counts per outcome."""
    totals: dict[Outcome, int] = {"kept": 0, "rejected": 0, "failed": 0}
    for name, count in verdicts.items():
        totals[Verdict(name).outcome] += count
    return totals
