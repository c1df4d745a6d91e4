"""The released checkpoint's prompt, token for token, on a tokenizer with Llama 3's special tokens and pre-tokenizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adamllm_ray.config import ImageLimits, SynthesisSection
from adamllm_ray.data.record import RECORD_SCHEMA
from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat, Turn, end_of_text_id
from adamllm_ray.synthesis.actors import Synthesizer, load_chat
from adamllm_ray.synthesis.engine_arguments import engine_arguments
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted, synthesis_prompt
from adamllm_ray.synthesis.protocol import IMAGE_TOKEN, SPECIAL, SYSTEM, chat_of, check_image_token
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec
from adamllm_ray.synthesis.triplets import Triplet, TripletParser
from adamllm_ray.training.conversations import IGNORE, conversation_example
from tests.conftest import TINY_TEXTS
from tests.synthesis.fakes import png, turns

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, END, OPEN, CLOSE, EOT, IMAGE = range(6)


@pytest.fixture(scope="module")
def llama3() -> Any:
    """Byte-level BPE behind Llama 3's pre-tokenizer; puts one begin-of-text before any text, and names eot as eos."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*TINY_TEXTS, SYSTEM, "\n\n", "user\n\nassistant\n\nsystem"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[(SPECIAL[0], 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=SPECIAL[0], eos_token="<|eot_id|>")
    made.chat_template = "{% for m in messages %}a template that must not be asked{% endfor %}"
    return made


@pytest.fixture(scope="module")
def chat(llama3: Any) -> ChatFormat:
    return chat_of(llama3, "llama3_official")


def raw(caption: str) -> str:
    """The text that the paper's code gives to a tokenizer, which adds another begin-of-text."""
    return (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{IMAGE_TOKEN}\nDescribe the image.<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{caption}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(
    "caption", ["a red circle", "Line one.\nLine two: 1234 x 5.", "é \U0001f600, it's", "  spaced "]
)
def test_prompt_ids_are_those_of_the_raw_text_behind_one_more_begin(
    llama3: Any, chat: ChatFormat, caption: str
) -> None:
    ids = synthesis_prompt(chat, caption)
    assert ids == llama3(raw(caption))["input_ids"]
    assert ids[:3] == [BOS, BOS, OPEN]
    assert ids.count(IMAGE) == 1
    assert END not in ids


def test_prompt_ids_written_out(llama3: Any, chat: ChatFormat) -> None:
    def text(part: str) -> list[int]:
        return llama3.encode(part, add_special_tokens=False)

    gap = text("\n\n")
    wanted = [BOS, BOS, OPEN, *text("system"), CLOSE, *gap, *text(SYSTEM), EOT]
    wanted += [OPEN, *text("user"), CLOSE, *gap, IMAGE, *text("\n"), *text("Describe the image."), EOT]
    wanted += [OPEN, *text("assistant"), CLOSE, *gap, *text("a red circle"), EOT, OPEN, *text("user"), CLOSE, *gap]
    assert synthesis_prompt(chat, "a red circle") == wanted
    assert (chat.turn_end, end_of_text_id(chat)) == ((EOT,), END)


def test_special_tokens_in_a_caption_are_spelled_out(chat: ChatFormat) -> None:
    plain, hostile = (synthesis_prompt(chat, text) for text in ("x", "".join(SPECIAL)))
    for token in range(6):
        assert hostile.count(token) == plain.count(token)


def test_a_response_is_read_up_to_end_of_text_and_not_to_end_of_turn(chat: ChatFormat) -> None:
    pairs = [(hinted(HINT_PRECISE, "What?"), "circle"), (hinted(HINT_INFORMATIVE, "What?"), "It is a circle.")]
    parser = TripletParser(chat)
    assert parser.end_id == END
    assert parser.parse([*turns(chat, *pairs), END], "stop") == Triplet("What?", "It is a circle.", "circle")


def test_what_was_trained_is_what_is_sent(chat: ChatFormat) -> None:
    """A seed conversation under the protocol begins with the prompt, and everything behind it carries loss."""
    prompt = synthesis_prompt(chat, "a red circle")
    talk = [Turn("user", "Describe the image.", image=True), Turn("assistant", "a red circle")]
    talk += [Turn("user", hinted(HINT_PRECISE, "What?")), Turn("assistant", "circle")]
    example = conversation_example(chat, talk, "synthesizer")
    assert example.ids[: len(prompt)] == prompt
    header = prompt[len(prompt) - prompt[::-1].index(OPEN) - 1 :]
    learnt = [label for label in example.labels if label != IGNORE]
    assert learnt[: len(header)] == header
    assert learnt[-2:] == [EOT, END]


def test_another_tokenizer_or_model_is_refused(tokenizer: Any, chat: ChatFormat) -> None:
    with pytest.raises(ModelError, match="reserved_special_token_4"):
        chat_of(tokenizer, "llama3_official")
    with pytest.raises(ModelError, match="image_token_index 9"):
        check_image_token(chat, {"image_token_index": 9}, "llama3_official")
    check_image_token(chat, {"image_token_index": IMAGE}, "llama3_official")


@pytest.fixture(scope="module")
def released(llama3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the released one may be: no usable chat template, and a generation_config that ends at eot."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlavaNextConfig, LlavaNextProcessor
    from transformers.models.llava_next import LlavaNextImageProcessorPil

    folder = tmp_path_factory.mktemp("released")
    LlavaNextProcessor(LlavaNextImageProcessorPil(), llama3, patch_size=14, image_token=IMAGE_TOKEN).save_pretrained(
        folder
    )
    LlavaNextConfig(image_token_index=IMAGE).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOT, END], "temperature": 0.6}))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


class Recorder:
    """An engine that notes what it is asked and answers with a task."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat, self.asked = chat, list[tuple[Request, SamplingSpec]]()

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        self.asked += [(request, request.sampling or sampling) for request in requests]
        pairs = [(hinted(hint, "What?"), hint) for hint in (HINT_PRECISE, HINT_INFORMATIVE)]
        return [Completion(request.id, [*turns(self.chat, *pairs), END], "stop") for request in requests]


def test_the_engine_is_asked_greedily_for_512_tokens_with_its_own_end(released: Path, chat: ChatFormat) -> None:
    recorder = Recorder(chat)
    section = SynthesisSection(protocol="llama3_official")
    maker = Synthesizer(str(released), section, ImageLimits(), 0, lambda *_: recorder)
    row = dict.fromkeys(RECORD_SCHEMA.names) | {"id": "r", "source": "s", "key": "k", "image": png(1)}
    table = pa.Table.from_pylist([row | {"caption": "a red circle", "verdict": "ok"}], RECORD_SCHEMA)
    (made,) = asyncio.run(maker(table)).to_pylist()
    ((request, spec),) = recorder.asked
    assert request.prompt_token_ids == synthesis_prompt(chat, "a red circle")
    assert (spec.temperature, spec.max_tokens, spec.stop_token_ids) == (0.0, 512, (END,))
    assert engine_arguments(str(released), section.engine, images=True, seed=0)["generation_config"] == "vllm"
    assert (made["instruction"], made["segments"], made["pairs"], made["triplets"]) == ("What?", 2, 2, 1)
    assert load_chat(str(released), "llama3_official").user_open == chat.user_open
