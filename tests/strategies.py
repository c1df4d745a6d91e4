"""Hypothesis strategies for what the models and the world may send us. Used by tests and by benchmarks/fuzz.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted
from tests import hostile
from tests.synthesis.fakes import turns

QUESTION = "What is shown?"
PRECISE = (hinted(HINT_PRECISE, QUESTION), "a circle")
INFORMATIVE = (hinted(HINT_INFORMATIVE, QUESTION), "It is a red circle.")
VOCABULARY = 5000  # ids beyond the tokenizer's own too


def responses(chat: ChatFormat, max_pieces: int = 25) -> st.SearchStrategy[list[int]]:
    """Token ids of a synthesizer gone wild: well-formed turns, markers in any order, and ids from anywhere."""
    markers = (chat.user_open, chat.assistant_open, chat.turn_end, (chat.eos_id,))
    texts = map(chat.text_ids, (*PRECISE, *INFORMATIVE))
    task = turns(chat, PRECISE, INFORMATIVE)
    whole = [[*task, chat.eos_id], turns(chat, INFORMATIVE, PRECISE), [*task, *chat.user_open]]
    known = st.sampled_from([tuple(piece) for piece in (*markers, *texts, *whole)])
    foreign = st.tuples(st.integers(0, VOCABULARY)) | st.lists(st.integers(0, VOCABULARY), max_size=8).map(tuple)
    pieces = st.lists(known | foreign, max_size=max_pieces)
    return pieces.map(lambda parts: [token for part in parts for token in part])


def label_logprobs(labels: Sequence[int]) -> st.SearchStrategy[dict[int, float]]:
    """Log-probabilities as an engine may return them: labels missing, foreign tokens, infinities, not a number."""
    tokens = st.sampled_from(list(labels)) | st.integers(0, VOCABULARY)
    values = st.floats(-1e4, 0.0) | st.sampled_from([0.0, -math.inf, math.inf, math.nan, -1e308, 1e308])
    return st.dictionaries(tokens, values, max_size=6)


def _originals() -> list[bytes]:
    """Small images of every allowed format and of every odd kind that the decoder treats apart."""
    small = hostile.picture(40, 30)
    plain = [hostile.encode(small, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    modes = [hostile.encode(small.convert(mode)) for mode in ("L", "LA", "RGBA", "P", "1")]
    odd = [hostile.exif_jpeg(6), hostile.ramp_png_16(), hostile.ramp_tiff(np.float32, 1.0), hostile.animation("GIF", 3)]
    return [*plain, *modes, *odd, b""]


def damaged_images() -> st.SearchStrategy[bytes]:
    """Images with bytes changed, cut off, doubled or replaced, and plain rubbish."""
    originals = _originals()

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(originals)))
        for position, value in draw(st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=12)):
            if data:  # half of the hits in the header, where they hurt
                data[position % (min(len(data), 64) if value % 2 else len(data))] = value
        start, stop = sorted(draw(st.tuples(st.integers(0, 1 << 14), st.integers(0, 1 << 14))))
        change = draw(st.sampled_from(["none", "cut", "hole", "double", "insert"]))
        if change == "cut":
            del data[stop:]
        elif change == "hole":
            del data[start:stop]
        elif change == "double":
            data[start:start] = data[start:stop]
        elif change == "insert":
            data[start:start] = draw(st.binary(max_size=40))
        return bytes(data)

    return damaged() | st.binary(max_size=400)
