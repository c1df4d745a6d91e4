"""Each target over its corpus and some hundred mutations of it: what fuzzing starts from, in seconds."""

from __future__ import annotations

import io
import tarfile
from collections import Counter

import pytest

from adamllm_ray.data import images
from tests import hostile
from tests.fuzz import __main__ as runner
from tests.fuzz.mutators import mended, tar_mended
from tests.fuzz.targets import TARGETS, Finding, corpus

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"),
]
MUTATIONS = 300
REACHED = {  # by the corpus: a reader that refused everything would pass any fuzzing
    "image": {"decoded"},
    "triplet": {"triplet", "response_unparsable", "response_repeats"},
    "records": {"rows", "nothing"},
    "config": {"accepted", "refused"},
    "webdataset": {"rows"},
}


def test_the_runner_knows_all_targets() -> None:
    assert set(runner.NAMES) == TARGETS.keys() == REACHED.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_its_mutations_are_answered(name: str) -> None:
    target = TARGETS[name]()
    inputs = [file.read_bytes() for file in corpus(name)]
    assert sum(map(len, inputs)) < 100_000, "corpora are kept small"
    outcomes = Counter(map(target, inputs))
    assert outcomes.keys() >= REACHED[name]
    for number, data in enumerate(hostile.mutations(inputs, MUTATIONS)):
        outcomes[target(mended(name, data) if number % 2 else data)] += 1
    print(name, dict(outcomes))  # pytest -rP shows them


def test_a_mutated_tar_is_read_past_its_checksums() -> None:
    [data] = [file.read_bytes() for file in corpus("webdataset") if file.name == "seed-pair"]
    changed = data.replace(b"d/1.txt", b"d/2.txt", 1)
    assert TARGETS["webdataset"]()(changed) == "source error"
    with tarfile.open(fileobj=io.BytesIO(tar_mended(changed))) as tar:
        assert tar.getnames() == ["d/1.png", "d/2.txt"]
    assert tar_mended(data) == data


def test_a_wrong_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_SIDEWAYS", ())
    [turned] = [file.read_bytes() for file in corpus("image") if file.name == "seed-jpeg-turned"]
    with pytest.raises(Finding, match="the header promised"):
        TARGETS["image"]()(turned)
