"""The sentences a synthesizer was trained on, and the prompt made of them.

A synthesizer conversation is: user(image + CAPTION_REQUEST), assistant(caption), then turns
user(hint + newline + question), assistant(answer), one for each hint in either order, and end of text. When we ask
for a task the prompt stops at an open user header: the model writes hint, question and answers itself.
The three sentences are facts of the released checkpoint; another wording gives output that does not parse.
"""

from __future__ import annotations

import unicodedata

from adamllm_ray.models.chat import ChatFormat, Turn

CAPTION_REQUEST = "Describe the image."
HINT_PRECISE = "Answer with a precise response."
HINT_INFORMATIVE = "Answer with an informative response."
HINTS = (HINT_PRECISE, HINT_INFORMATIVE)


def hinted(hint: str, question: str) -> str:
    """The user text of one task turn."""
    return f"{hint}\n{question}"


def split_hint(text: str) -> tuple[str | None, str]:
    """Undo `hinted`: (hint or None, question), both without surrounding white space."""
    stripped = text.strip()
    for hint in HINTS:
        if stripped.startswith(hint):
            return hint, stripped[len(hint) :].strip()
    return None, stripped


def same_question(text: str) -> str:
    """What two wordings of one question have in common: case, white space and punctuation do not count.

    A question that is all punctuation stands for itself.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(" " if unicodedata.category(character)[0] == "P" else character for character in folded)
    return " ".join(bare.split()) or " ".join(folded.split())


def caption_turns(caption: str) -> list[Turn]:
    """The first two turns: the image with the fixed request, and the caption as its answer."""
    return [Turn("user", CAPTION_REQUEST, image=True), Turn("assistant", caption)]


def synthesis_prompt(chat: ChatFormat, caption: str) -> list[int]:
    """Token ids of the prompt: one image placeholder, the caption as data, an open user header at the end."""
    return chat.prompt(caption_turns(caption), open_role="user")
