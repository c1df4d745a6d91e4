"""The exception tree: exit codes as documented, messages a user can act on."""

from __future__ import annotations

import pickle
import re

import pytest

from adamllm_ray import errors
from adamllm_ray.data.verdicts import Verdict, count_outcomes

pytestmark = pytest.mark.guards


def tree() -> list[type[errors.AdamLLMError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AdamLLMError)]
    assert len(found) > 8
    return found


def test_every_error_is_drawn_in_the_docstring_with_its_exit_code() -> None:
    for kind in tree():
        drawn = re.search(rf"── {kind.__name__}\s+(?:exit (\d+))?", errors.__doc__ or "")
        if kind is not errors.AdamLLMError:
            assert drawn, f"{kind.__name__} is missing in the docstring"
            assert drawn[1] in (None, str(kind.exit_code))


def test_exit_codes() -> None:
    assert {kind.exit_code for kind in tree()} == {1, 2, 75}
    assert errors.StorageError.exit_code == errors.TooManyFailures.exit_code == 75
    assert errors.RunLocked.exit_code == 75  # the same command, later
    assert errors.ConfigError.exit_code == errors.FingerprintMismatch.exit_code == 2


def test_mismatch_names_keys_and_remedies() -> None:
    message = str(errors.FingerprintMismatch("ingest", {"data.path": ("/a", "/b")}))
    assert "data.path: folder has '/a', this run has '/b'" in message
    assert "--force-new" in message


@pytest.mark.parametrize("detail", ["", "12 x 4 pixels"])
def test_image_refused_carries_its_verdict(detail: str) -> None:
    refused = errors.ImageRefused(Verdict.IMAGE_TOO_SMALL, detail)
    assert refused.verdict is Verdict.IMAGE_TOO_SMALL
    assert str(refused).startswith("image_too_small")


def test_errors_cross_process_borders() -> None:
    """Ray pickles what a worker raises; an exception that cannot be unpickled hides its message."""
    refused = pickle.loads(pickle.dumps(errors.ImageRefused(Verdict.IMAGE_EMPTY, "0 bytes")))
    assert (refused.verdict, refused.detail) == (Verdict.IMAGE_EMPTY, "0 bytes")
    mismatch = pickle.loads(pickle.dumps(errors.FingerprintMismatch("ingest", {"a": (1, 2)})))
    assert mismatch.differing == {"a": (1, 2)}


def test_each_verdict_has_one_outcome() -> None:
    counts = count_outcomes({verdict.value: 1 for verdict in Verdict})
    assert sum(counts.values()) == len(Verdict)
    assert counts["kept"] == 2
    with pytest.raises(ValueError, match="unheard_of"):
        count_outcomes({"unheard_of": 1})


def test_foreign_text_stays_on_its_line() -> None:
    shown = errors.foreign("a\nERROR fake line\r\x1b[31mred\x1b[0m \u202etxt.exe é 水")
    assert shown == "a\\nERROR fake line\\r\\x1b[31mred\\x1b[0m \\u202etxt.exe é 水"
    assert len(errors.foreign("x" * 10_000)) == 303
