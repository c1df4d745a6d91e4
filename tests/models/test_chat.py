"""Chat format: text can never become structure, whatever it says and however the tokenizer marks its tokens."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.pocket.architecture import BOS, EOS, EOT, IMAGE, SPECIAL_TOKENS, build_tokenizer
from tests import hostile
from tests.conftest import TINY_TEXTS

pytestmark = pytest.mark.timeout(120)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.content %}"
    "{% if c.type == 'image' %}{{ '<|vision|>' }}{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision|>"]


def llama_style() -> ChatFormat:
    return ChatFormat(build_tokenizer(TINY_TEXTS, 600))


def chatml_style(special: bool) -> ChatFormat:
    """The same tokenizer with ChatML tokens; ``special=False`` is how some published tokenizers declare theirs."""
    from tokenizers import AddedToken

    tokenizer = build_tokenizer(TINY_TEXTS, 600)
    tokenizer.add_tokens([AddedToken(token, special=special) for token in CHATML_TOKENS], special_tokens=special)
    return ChatFormat(tokenizer, chat_template=CHATML, image_token="<|vision|>")


FORMATS = {"llama": llama_style(), "chatml": chatml_style(True), "chatml, not special": chatml_style(False)}


@pytest.fixture(params=FORMATS)
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    return FORMATS[request.param]


def structure(chat: ChatFormat, ids: list[int]) -> list[int]:
    """The ids that are tokens of the template rather than spelled text."""
    tokenizer = chat.tokenizer
    names = [*SPECIAL_TOKENS, *(CHATML_TOKENS if "im_start" in (chat.template or "") else [])]
    reserved = {tokenizer.convert_tokens_to_ids(name) for name in names}
    return [index for index in ids if index in reserved]


def test_special_tokens_in_a_caption_open_no_turn(chat: ChatFormat) -> None:
    plain = [Turn("user", "Describe the image.", image=True), Turn("assistant", "A pond.")]
    attack = [plain[0], Turn("assistant", hostile.SPECIAL_CAPTION)]
    assert structure(chat, chat.encode(attack).ids) == structure(chat, chat.encode(plain).ids)
    assert structure(chat, chat.prompt(attack, "user")) == structure(chat, chat.prompt(plain, "user"))
    assert chat.encode(attack).ids.count(chat.image_token_id or -1) == 1


def test_special_captions_are_spelled_exactly(chat: ChatFormat) -> None:
    assert chat.decode(chat.text_ids(hostile.SPECIAL_CAPTION)) == hostile.SPECIAL_CAPTION


PIECES = st.sampled_from(
    [*SPECIAL_TOKENS, *CHATML_TOKENS, "<", "|>", "user", "\n\n", "\ue0000\ue001", "\u202e", "\ufeff"]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=8).map("".join)


@settings(max_examples=500, deadline=None, database=None)
@given(name=st.sampled_from(sorted(FORMATS)), texts=st.lists(TEXTS, min_size=2, max_size=5))
def test_no_text_changes_the_structure(name: str, texts: list[str]) -> None:
    chat = FORMATS[name]
    roles = ["user", "assistant"] * 3
    turns = [Turn(role, text, image=index == 0) for index, (role, text) in enumerate(zip(roles, texts, strict=False))]
    bare = [Turn(turn.role, "", turn.image) for turn in turns]
    encoded = chat.encode(turns)
    assert structure(chat, encoded.ids) == structure(chat, chat.encode(bare).ids)
    assert [chat.decode(encoded.ids[span.text : span.end]) for span in encoded.turns] == texts
    for span in encoded.turns:
        assert tuple(encoded.ids[span.end : span.stop]) == chat.turn_end


def test_llama_layout_token_by_token() -> None:
    chat = FORMATS["llama"]
    encoded = chat.encode([Turn("user", "a", image=True), Turn("assistant", "b")])
    assert encoded.ids[0] == BOS
    assert encoded.ids.count(BOS) == 1
    assert encoded.ids.count(IMAGE) == 1
    assert encoded.ids[-1] == EOT
    assert chat.turn_end == (EOT,)
    assert chat.stop_ids == sorted([EOT, EOS])
    first, second = encoded.turns
    assert (first.start, second.stop) == (0, len(encoded.ids))
    assert first.stop == second.start


def test_prompt_is_the_beginning_of_the_conversation(chat: ChatFormat) -> None:
    turns = [Turn("user", "Describe.", image=True), Turn("assistant", "A pond."), Turn("user", "Why?")]
    whole = chat.encode([*turns, Turn("assistant", "Rain.")])
    assert whole.ids[: whole.turns[3].text] == chat.prompt(turns)
    open_user = chat.prompt(turns[:2], "user")
    assert open_user == whole.ids[: whole.turns[2].text]
    assert tuple(open_user[-len(chat.user_open) :]) == chat.user_open


def test_generation_stops_at_the_end_of_a_turn() -> None:
    chat = FORMATS["chatml"]
    assert chat.tokenizer.convert_tokens_to_ids("<|im_end|>") in chat.stop_ids
    assert chat.decode(list(chat.turn_end), keep_special=True) == "<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "no chat template"),
        ("{% for m in messages[:1] %}{{ m.content[0].text }}<|eot_id|>{% endfor %}", "drops or reorders"),
        ("{% for m in messages|reverse %}{{ m.content[0].text }}<|eot_id|>{% endfor %}", "drops or reorders"),
        ("{% for m in messages %}{{ m.role }}{{ m.content[0].text }}{% endfor %}", "no end-of-turn"),
    ],
)
def test_templates_that_cannot_be_used(template: str, words: str) -> None:
    tokenizer: Any = build_tokenizer(TINY_TEXTS, 600)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=words):
        ChatFormat(tokenizer, chat_template=template)


def test_threads_share_a_format(chat: ChatFormat) -> None:
    """Transformers switches the tokenizer itself between texts and templates; replicas prepare rows in threads."""
    turns = [Turn("user", hostile.SPECIAL_CAPTION * 20, image=True), Turn("assistant", "A pond.")]
    expected, wrong = chat.encode(turns).ids, []

    def work(_: int) -> None:
        for _ in range(150):
            chat._ids.clear()  # the template's pieces are encoded once, and kept: wrong ones would stay
            wrong.extend([1] if chat.encode(turns).ids != expected else [])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
