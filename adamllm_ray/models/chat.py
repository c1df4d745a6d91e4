"""Chat conversations on token ids, for any model whose tokenizer has a chat template.

Everything that crosses the border between text and tokens goes through `ChatFormat`, so that training and
inference cannot disagree, and so that user text can never open a turn: template text is encoded with special
tokens, user text (captions, questions, answers) without. A caption that says ``<|eot_id|>`` becomes ordinary
characters.

How it works: the template is rendered with a sentinel in place of each text; the pieces between sentinels are
what the template adds (headers, end of turn, image placeholder). No template is known by name.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from adamllm_ray.errors import ModelError

Role = Literal["system", "user", "assistant"]

# Whether special tokens are recognised is a switch of the tokenizer itself, which transformers sets before each call
# (5.19: _encode_plus). While one thread of a replica encodes a caption, another's template text would be spelled out,
# or a caption of the other's would open a turn.
_SWITCH = threading.Lock()


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. ``image=True`` puts the image before the text, in the place where the template wants it."""

    role: Role
    text: str
    image: bool = False


@dataclass(frozen=True, slots=True)
class TurnSpan:
    """Positions (half-open) of one turn in the ids: header [start, text), text [text, end), end marker [end, stop)."""

    role: Role
    start: int
    text: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A whole conversation: token ids and where each turn lies in them."""

    ids: list[int]
    turns: list[TurnSpan]


class ChatFormat:
    """Token-exact rendering of conversations for one tokenizer. Threads may share it.

    Attributes:
        turn_end: ids that close a turn, e.g. ``<|eot_id|>`` or ``<|im_end|>\\n``.
        user_open: ids between an assistant text and the next user text: ``turn_end`` + user header.
        assistant_open: ids between a user text and the assistant text: ``turn_end`` + assistant header.
        stop_ids: ids that end an assistant turn in generation (first id of ``turn_end``, and end of text).
        image_token_id: the single placeholder that stands for an image before expansion.
        end_token_id: what ends a text, where the tokenizer is not to be asked; see `end_of_text_id`.

    Raises:
        ModelError: the tokenizer has no chat template, or the template hides or reorders texts.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        image_token: str | None = None,
        end_token: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.end_token_id: int | None = tokenizer.convert_tokens_to_ids(end_token) if end_token else None
        self.template: str | None = chat_template or tokenizer.chat_template
        if not self.template:
            raise ModelError(
                "this model has no chat template; give a model folder whose processor or tokenizer has one"
            )
        self.image_token: str | None = image_token or getattr(tokenizer, "image_token", None)
        self.image_token_id: int | None = (
            tokenizer.convert_tokens_to_ids(self.image_token) if self.image_token else None
        )
        self._known: dict[tuple[tuple[str, bool], ...], list[str]] = {}
        self._ids: dict[str, list[int]] = {}
        probe: list[Turn] = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
        pieces = self._pieces(probe)
        self.assistant_open: tuple[int, ...] = tuple(self._template_ids(pieces[1]))
        self.user_open: tuple[int, ...] = tuple(self._template_ids(pieces[2]))
        self.turn_end: tuple[int, ...] = _common_prefix(self._template_ids(pieces[4]), self.user_open)
        if not self.turn_end:
            raise ModelError("this model's chat template has no end-of-turn token after the assistant's text")
        eos = tokenizer.eos_token_id
        self.eos_id: int = eos if isinstance(eos, int) else eos[0]
        self.stop_ids: list[int] = sorted({self.turn_end[0], self.eos_id})
        structure = {
            self.image_token_id,
            self.eos_id,
            self.end_token_id,
            *self.turn_end,
            *self.user_open,
            *self.assistant_open,
        }
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self._reserved: dict[int, str] = {index: str(token) for index, token in added.items() if index in structure}

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """Ids of a finished conversation, each turn closed; the image placeholder is one token (not expanded)."""
        pieces = self._pieces(turns)
        ids: list[int] = []
        spans: list[TurnSpan] = []
        start = 0
        for index, turn in enumerate(turns):
            header = self._template_ids(pieces[index])
            if index:  # the piece also closes the turn before
                ids += self.turn_end
                header = header[len(self.turn_end) :]
                start = len(ids)
            ids += header
            text = len(ids)
            ids += self.text_ids(turn.text)
            end = len(ids)
            spans.append(TurnSpan(turn.role, start, text, end, end + len(self.turn_end)))
        ids += self.turn_end
        return Encoded(ids, spans)

    def prompt(self, turns: Sequence[Turn], open_role: Literal["user", "assistant"] = "assistant") -> list[int]:
        """Ids that end right where the model is to write ``open_role``'s next text."""
        encoded = self.encode([*turns, Turn(open_role, "")])
        return encoded.ids[: encoded.turns[-1].text]

    def text_ids(self, text: str) -> list[int]:
        """Ids of user text. Special tokens in it are spelled out, not recognised."""
        if not text:
            return []
        ids = self._spell(text)
        if self._reserved.keys().isdisjoint(ids):
            return ids
        # An added token that the tokenizer does not mark as special is recognised all the same: cut it in two.
        names = "|".join(re.escape(name) for name in self._reserved.values())
        cuts = [0, *(match.start() + 1 for match in re.finditer(f"(?={names})", text)), len(text)]
        return [index for start, end in pairwise(cuts) for index in self._spell(text[start:end])]

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """``len(text_ids(text))`` of each text, in the tokenizer's own threads where it has them."""
        if not texts:
            return []
        with _SWITCH:
            found = self.tokenizer(
                list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )["input_ids"]
        free = self._reserved.keys().isdisjoint
        return [len(ids) if free(ids) else len(self.text_ids(text)) for text, ids in zip(texts, found, strict=True)]

    def _spell(self, text: str) -> list[int]:
        with _SWITCH:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of ids; special tokens are left out unless ``keep_special``."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special)
        return text

    def _template_ids(self, piece: str) -> list[int]:
        known = self._ids.get(piece)
        if known is None:
            with _SWITCH:
                known = self._ids[piece] = list(self.tokenizer.encode(piece, add_special_tokens=False)) if piece else []
        return known

    def _pieces(self, turns: Sequence[Turn]) -> list[str]:
        """What the template writes before, between and after the texts: ``len(turns) + 1`` strings.

        It depends on roles and images only, so each shape of conversation is rendered once.
        """
        shape = tuple((turn.role, turn.image) for turn in turns)
        if shape not in self._known:
            self._known[shape] = self._render(turns)
        return self._known[shape]

    def _render(self, turns: Sequence[Turn]) -> list[str]:
        sentinels = [f"\ue000{index}\ue001" for index in range(len(turns))]  # private-use: in no caption's way
        messages = [_message(turn, mark) for turn, mark in zip(turns, sentinels, strict=True)]
        rendered: str = self.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=self.template)
        pieces = []
        for mark in sentinels:
            before, found, rendered = rendered.partition(mark)
            if not found:
                raise ModelError("this model's chat template drops or reorders turns, so masks cannot be placed")
            pieces.append(before)
        return [*pieces, rendered]


def end_of_text_id(chat: ChatFormat) -> int:
    """The id behind the last turn: what a synthesizer learns to stop on.

    Chat tokenizers whose eos closes a turn (ChatML) end text with their pad token. Raises ModelError if there is none.
    """
    for candidate in (getattr(chat, "end_token_id", None), chat.eos_id, getattr(chat.tokenizer, "pad_token_id", None)):
        if isinstance(candidate, int) and candidate not in chat.turn_end:
            return candidate
    raise ModelError("the synthesizer's tokenizer has no token that ends a text, only one that ends a turn")


def _message(turn: Turn, text: str) -> dict[str, Any]:
    parts: list[dict[str, str]] = [{"type": "image"}] if turn.image else []
    return {"role": turn.role, "content": [*parts, {"type": "text", "text": text}]}


def _common_prefix(tail: list[int], between: tuple[int, ...]) -> tuple[int, ...]:
    count = 0
    while count < min(len(tail), len(between)) and tail[count] == between[count]:
        count += 1
    return tuple(tail[:count])
