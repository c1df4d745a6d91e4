"""How a synthesizer is spoken to: which template, image token and end its prompts and responses have.

* ``chat``             the model's own chat template: what `adamllm train` with objective synthesizer teaches
* ``llama3_official``  what the released checkpoint (AdaptLLM/visual-instruction-synthesizer, a LLaVA-NeXT-Llama3-8B)
                       was trained on, whatever template, image token or end-of-text its folder names

The released checkpoint has seen two begin-of-text tokens (its template wrote one, its tokenizer another), the system
line of LLaVA-NeXT-Llama3 (as transformers documents it), and ``<|end_of_text|>`` behind the last turn. A chat API sends
one begin-of-text and ends at the first ``<|eot_id|>``, that is, after the first question.
"""

from __future__ import annotations

from typing import Any, Literal

from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat

Protocol = Literal["chat", "llama3_official"]

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
IMAGE_TOKEN, END_OF_TEXT = "<|reserved_special_token_4|>", "<|end_of_text|>"
SPECIAL = ("<|begin_of_text|>", END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", IMAGE_TOKEN)

_TURN = "<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\\n\\n' }}"
_TEMPLATE = (
    "<|begin_of_text|><|begin_of_text|>"
    "<|start_header_id|>system<|end_header_id|>{{ '\\n\\n' }}" + SYSTEM + "<|eot_id|>"
    "{% for m in messages %}" + _TURN + "{% for part in m.content %}"
    "{% if part.type == 'image' %}" + IMAGE_TOKEN + "{{ '\\n' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|eot_id|>{% endfor %}"
)


def chat_of(processor: Any, protocol: Protocol = "chat") -> ChatFormat:
    """The chat format of a model under a protocol.

    Raises:
        ModelError: the tokenizer lacks what the protocol needs.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if protocol == "chat":
        return ChatFormat(
            tokenizer,
            chat_template=getattr(processor, "chat_template", None),
            image_token=getattr(processor, "image_token", None),
        )
    known = tokenizer.get_vocab()
    missing = [token for token in SPECIAL if token not in known]
    if missing:
        raise ModelError(
            f"synthesis.protocol: llama3_official needs a Llama-3 tokenizer, and this one has no {', '.join(missing)}; "
            "use protocol: chat for other models"
        )
    return ChatFormat(tokenizer, chat_template=_TEMPLATE, image_token=IMAGE_TOKEN, end_token=END_OF_TEXT)


def check_image_token(chat: ChatFormat, config: dict[str, Any], protocol: Protocol) -> None:
    """Raise ModelError where the model's config.json names another image token than the protocol sends."""
    wanted = config.get("image_token_index", config.get("image_token_id"))
    if protocol != "chat" and wanted is not None and wanted != chat.image_token_id:
        raise ModelError(
            f"synthesis.protocol: {protocol} sends {IMAGE_TOKEN} (id {chat.image_token_id}) for the image, and this "
            f"model's config.json has image_token_index {wanted}: it is not a conversion of the released synthesizer; "
            "use protocol: chat"
        )
