"""The pocket models: LLaVA-NeXT and Llama architectures at about 1-4 M parameters, with their own tokenizer.

The tokenizer has Llama-3-style header and end-of-turn tokens, so prompts, masks and the triplet parser take the
same path as for an 8 B model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

IMAGE_SIDE = 60  # pixels: one Blue Marble chip at its native size (about 7.4 km per pixel at the equator)

SPECIAL_TOKENS = [
    "<|pad|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
]
PAD, BOS, EOS, _, _, EOT, IMAGE = range(len(SPECIAL_TOKENS))

# of the language model before training
EMBEDDING_STD = 0.3
SAYING_GAIN = 0.1  # of the output layer, relative to the embeddings
MATCHING_GAIN, PASSING_GAIN = 0.7, 0.4  # of queries and keys each; of values and output together
# of the vision tower before training
HEAD_WIDTH = 32
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # rows down, columns right: where a head looks first
LOOKING_GAIN = 1.13  # of what queries and keys each know of places
RANDOM_LEFT = 0.3  # of the random queries and keys

CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}{{ '<image>\n' }}{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Size:
    """Widths and depths of a pocket model. Heads are 32 wide in both the language model and the vision tower."""

    hidden: int = 160
    layers: int = 4
    mlp: int = 448
    vision_hidden: int = 128
    vision_layers: int = 5  # LLaVA reads the last but one
    patch: int = 12  # pixels; 60 / 12 = 5 patches a side: 25 tokens for the base view, 30 for the tile


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1200) -> Any:
    """Byte-level BPE trained on ``texts``; any text round-trips through it. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        extra_special_tokens={"image_token": SPECIAL_TOKENS[IMAGE]},
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: Any, size: Size = Size()) -> Any:
    """LLaVA-NeXT processor: 60 x 60 px, one tile, so an image is 25 + 30 tokens at the default patch size."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next import LlavaNextImageProcessorPil

    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size=side, image_grid_pinpoints=[[IMAGE_SIDE, IMAGE_SIDE]]
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        image_token=SPECIAL_TOKENS[IMAGE],
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _llama_config(vocab_size: int, size: Size) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 32,
        num_key_value_heads=size.hidden // 32,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def build_vlm(vocab_size: int, size: Size = Size(), seed: int = 0) -> Any:
    """A LLaVA-NeXT with random fp32 weights."""
    import torch
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=2 * size.vision_hidden,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_hidden // HEAD_WIDTH,
        image_size=IMAGE_SIDE,
        patch_size=size.patch,
        projection_dim=size.vision_hidden,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=_llama_config(vocab_size, size),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[IMAGE_SIDE, IMAGE_SIDE]],
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config).float()
    _begin_by_matching(model.model.language_model)
    _begin_by_looking_around(model.model.vision_tower, IMAGE_SIDE // size.patch)
    _set_generation(model)
    return model


def build_judge(vocab_size: int, size: Size = Size(), seed: int = 0) -> Any:
    """A text-only Llama with random fp32 weights."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(_llama_config(vocab_size, size)).float()
    _set_generation(model)
    return model


def _begin_by_matching(language_model: Any) -> None:
    """Attention that starts by looking for what is like the token itself, and by passing on what it finds there.

    Queries and keys of a head get the same orthonormal rows, values and output each other's transpose (mimetic
    initialisation, Trockman and Kolter 2023, arXiv 2305.09828). From random weights a model of this size does not find
    out in an hour that a question about the red area wants the token that is red (benchmarks/LOG.md); this way it does
    in minutes.
    """
    import torch
    from torch import nn

    embedding = language_model.embed_tokens.weight
    with torch.no_grad():
        embedding.mul_(EMBEDDING_STD / embedding.std())
        embedding[PAD] = 0
        for layer in language_model.layers:
            attention = layer.self_attn
            matching = nn.init.orthogonal_(torch.empty_like(attention.q_proj.weight))
            attention.q_proj.weight.copy_(MATCHING_GAIN * matching)
            attention.k_proj.weight.copy_(MATCHING_GAIN * matching)
            passing = nn.init.orthogonal_(torch.empty_like(attention.v_proj.weight))
            attention.v_proj.weight.copy_(PASSING_GAIN**0.5 * passing)
            attention.o_proj.weight.copy_(PASSING_GAIN**0.5 * passing.T)


def _begin_by_looking_around(tower: Any, grid: int) -> None:
    """Heads that start by looking at the patch above, below, to the left or to the right of their own.

    Places are orthogonal vectors, as long as what a patch shows; the keys of a head are codes of places, its queries
    the codes of those next to them (at the edge: of the class token). To count the parts of a region a tower has to
    know which patches are joined, and from random weights it hardly finds that out (benchmarks/LOG.md, decision 0128).

    Args:
        grid: patches a side.
    """
    import torch
    from torch import nn

    embeddings = tower.embeddings
    places, width = embeddings.position_embedding.weight.shape
    with torch.no_grad():
        directions = nn.init.orthogonal_(torch.empty(places, width))
        embeddings.position_embedding.weight.copy_(directions * embeddings.patch_embedding.weight.norm())
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            for head in range(attention.num_heads):
                codes = nn.init.orthogonal_(torch.empty(places, HEAD_WIDTH))
                rows = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
                next_to = codes[_neighbours(grid, *NEIGHBOURS[head % len(NEIGHBOURS)])]
                for projection, known in ((attention.k_proj, codes), (attention.q_proj, next_to)):
                    known = LOOKING_GAIN * known.T @ directions
                    projection.weight[rows] = RANDOM_LEFT * projection.weight[rows] + known


def _neighbours(grid: int, down: int, right: int) -> list[int]:
    """For each place (class token, then patches row by row) the one so far from it; off the edge the class token."""
    found = [0]
    for row in range(down, grid + down):
        for column in range(right, grid + right):
            inside = 0 <= row < grid and 0 <= column < grid
            found.append(1 + row * grid + column if inside else 0)
    return found


def begin_by_saying(model: Any, tokenizer: Any) -> None:
    """Words that start alike with and without a space before them, an output layer that says what the state is like.

    "arid" at the start of an answer is another token than " arid" within a caption. Both start as the same vector but
    for one direction, which is the same for all words, so that to copy a word into an answer need not be learnt for
    each word apart: rare ones would never be.
    """
    import torch

    ids = tokenizer.get_vocab()
    embedding = model.get_input_embeddings().weight
    first = torch.randn_like(embedding[0]) * EMBEDDING_STD
    with torch.no_grad():
        for token, number in ids.items():
            if (inside := ids.get(f"\u0120{token}")) is not None and token.isalpha():
                embedding[number] = embedding[inside] + first
        model.lm_head.weight.copy_(SAYING_GAIN * embedding)


def _set_generation(model: Any) -> None:
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = BOS, [EOS], PAD
