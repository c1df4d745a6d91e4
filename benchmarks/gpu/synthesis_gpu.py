"""Pairs/s of an 8 B synthesizer and prompts/s of an 8 B judge on one GPU, with dummy weights: only the work is real.

    python benchmarks/gpu/synthesis_gpu.py [--rows 1024] [--prompts 8192] [--precision fp8]      on a GPU
    python benchmarks/gpu/synthesis_gpu.py --tiny                              the same code on a CPU, in two minutes

Needs vLLM 0.25 or newer and nothing of ours but this file and measure.py: no Ray, no download. Synthesizer: LLaVA-NeXT
with the dimensions of llama3-llava-next-8b, a 640 x 480 image and a caption of 400 tokens in, 512 tokens out. Judge: a
Llama of 8 B, 1,600 tokens of header that all prompts share (prefix cache), 150 of their own, one token out of three.
``pairs_per_s`` and ``judge_prompts_per_s``; the paper's A100 gives 2.78 and 11.1. ``--precision`` is the synthesizer's:
``bf16``, or ``fp8`` for weights and KV cache (vLLM quantizes at load; what that does to answers is not measured here).
The judge is always bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import finish, last_json, say  # the file in the folder above

VOCAB, IMAGE_ID, PADDING_ID = 128320, 5, 4
CAPTION_TOKENS = 400
HEADER_TOKENS, TASK_TOKENS = 1600, 150
LABEL_IDS = [100, 101, 102]
SLOTS = {"bf16": 256, "fp8": 384}  # of the synthesizer: what the KV cache of an 80 to 140 GB card holds
ON_GPU: dict[str, Any] = {  # a shorter start: no autotuning, graphs for decoding alone
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.92,
    "kernel_config": {"enable_flashinfer_autotune": False},
}


@dataclass(frozen=True)
class Scale:
    """Dimensions of both models and of one image."""

    hidden: int = 4096
    mlp: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    vision_hidden: int = 1024
    vision_mlp: int = 4096
    vision_layers: int = 24
    vision_heads: int = 16
    tile: int = 336
    picture: tuple[int, int] = (640, 480)
    new_tokens: int = 512


TINY = Scale(128, 256, 2, 4, 2, 64, 128, 3, 2, 56, (80, 60), 24)


def main() -> None:
    """Each model in a process of its own, so that the second finds the memory free; print the line."""
    options = _options()
    scale = TINY if options.tiny else Scale()
    if options.part:
        count = options.rows if options.part == "synthesizer" else options.prompts
        precision = "fp32" if options.tiny else options.precision if options.part == "synthesizer" else "bf16"
        print(json.dumps({"synthesizer": synthesizer, "judge": judge}[options.part](scale, count, precision)))
        return
    found = {part: _in_process(part) for part in ("synthesizer", "judge")}
    finish(
        "synthesis_gpu" + ("_tiny" if options.tiny else ""),
        {
            "pairs_per_s": found["synthesizer"]["per_s"],
            "judge_prompts_per_s": found["judge"]["per_s"],
            "goals": {"pairs_per_s": 8, "judge_prompts_per_s": 100},
            "precision": {
                "synthesizer": "fp32" if options.tiny else options.precision,
                "judge": "fp32" if options.tiny else "bf16",
            },
            **found,
        },
        hardware_more={"accelerator": found["judge"]["device"]},
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="image-caption pairs; 1024, or 8 with --tiny")
    parser.add_argument("--prompts", type=int, help="judge prompts; 8192, or 32 with --tiny")
    parser.add_argument("--tiny", action="store_true", help="small models, few rows, CPU")
    parser.add_argument("--precision", choices=["bf16", "fp8"], default="bf16", help="of the synthesizer")
    parser.add_argument("--part", choices=["synthesizer", "judge"], help="only this one")
    options = parser.parse_args()
    options.rows = options.rows or (8 if options.tiny else 1024)
    options.prompts = options.prompts or (32 if options.tiny else 8192)
    return options


def _in_process(part: str) -> dict[str, Any]:
    say(f"{part} ...")
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        say(done.stdout)  # vLLM writes there why an engine died
        raise SystemExit(f"{part} ended with {done.returncode}")
    found = last_json(done.stdout)
    say(f"{part}: {found['per_s']} per second")
    return found


def synthesizer(scale: Scale, rows: int, precision: str) -> dict[str, Any]:
    """Pairs/s: one image and 400 caption tokens in, 512 tokens out, whatever they are."""
    import numpy as np
    from PIL import Image
    from vllm import SamplingParams

    folder = tempfile.mkdtemp(prefix="vlm-")
    write_vlm(folder, scale)
    more: dict[str, Any] = {"quantization": "fp8", "kv_cache_dtype": "fp8"} if precision == "fp8" else {}
    if precision in SLOTS:
        slots = SLOTS[precision]
        graphs = {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, *range(8, slots + 1, 8)]}
        more |= {"max_num_seqs": slots, "max_num_batched_tokens": 8192, "compilation_config": graphs}
    more |= {"limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0, "enable_prefix_caching": False}
    llm = start(folder, precision, max_model_len=6144, **more)
    width, height = scale.picture
    draw, pixels = random.Random(0), np.random.default_rng(0)

    def prompt() -> dict[str, Any]:
        image = Image.fromarray(pixels.integers(0, 255, (height, width, 3), dtype=np.uint8))
        return {"prompt_token_ids": [1, IMAGE_ID, *_ids(draw, CAPTION_TOKENS)], "multi_modal_data": {"image": image}}

    sampling = SamplingParams(max_tokens=scale.new_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    return run(llm, [prompt() for _ in range(rows)], sampling, warm=min(rows, 32))


def judge(scale: Scale, prompts: int, precision: str) -> dict[str, Any]:
    """Prompts/s: 1,600 shared tokens, 150 others, one token out of three with log-probabilities."""
    from vllm import SamplingParams

    folder = tempfile.mkdtemp(prefix="judge-")
    write_judge(folder, scale)
    more = {} if precision == "fp32" else {"max_num_batched_tokens": 16384}
    llm = start(folder, precision, max_model_len=4096, enable_prefix_caching=True, **more)
    draw = random.Random(0)
    header = [1, *_ids(draw, HEADER_TOKENS)]
    sampling = SamplingParams(
        max_tokens=1, temperature=0.0, allowed_token_ids=LABEL_IDS, logprobs=len(LABEL_IDS), detokenize=False
    )
    return run(llm, [{"prompt_token_ids": header + _ids(draw, TASK_TOKENS)} for _ in range(prompts)], sampling, warm=32)


def start(folder: str, precision: str, **more: Any) -> Any:
    """vLLM's offline engine with dummy weights; its core runs in a process of its own."""
    from vllm import LLM

    on_cpu = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8, "gpu_memory_utilization": 0.3}
    device = on_cpu if precision == "fp32" else ON_GPU
    return LLM(folder, load_format="dummy", generation_config="vllm", seed=0, **device, **more)


def run(llm: Any, prompts: list[dict[str, Any]], sampling: Any, warm: int) -> dict[str, Any]:
    """Rate over all prompts after a warm-up with some of them."""
    import torch

    llm.generate(prompts[:warm], sampling, use_tqdm=False)
    if warm and hasattr(llm, "reset_prefix_cache"):
        llm.reset_prefix_cache()  # the warm-up's prompts come again
    started = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    written = sum(len(one.outputs[0].token_ids) for one in outputs)
    if len(outputs) != len(prompts) or written != len(prompts) * sampling.max_tokens:
        raise RuntimeError(f"{len(outputs)} of {len(prompts)} answers with {written} tokens")
    return {
        "per_s": round(len(prompts) / seconds, 3),
        "requests": len(prompts),
        "seconds": round(seconds, 1),
        "prompt_tokens": round(sum(len(one.prompt_token_ids) for one in outputs) / len(outputs)),
        "generated_tokens_per_s": round(written / seconds),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }


def write_vlm(folder: str, scale: Scale) -> None:
    """config.json, processor and tokenizer of a LLaVA-NeXT; no weights."""
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor

    vision = CLIPVisionConfig(
        hidden_size=scale.vision_hidden,
        intermediate_size=scale.vision_mlp,
        num_hidden_layers=scale.vision_layers,
        num_attention_heads=scale.vision_heads,
        image_size=scale.tile,
        patch_size=14,
        projection_dim=scale.vision_hidden,
    )
    grid = [[a * scale.tile, b * scale.tile] for a, b in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=_llama(scale),
        image_token_index=IMAGE_ID,
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlavaNextForConditionalGeneration"]
    config.save_pretrained(folder)
    side = {"height": scale.tile, "width": scale.tile}
    images = LlavaNextImageProcessor(size={"shortest_edge": scale.tile}, crop_size=side, image_grid_pinpoints=grid)
    LlavaNextProcessor(
        image_processor=images,
        tokenizer=_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def write_judge(folder: str, scale: Scale) -> None:
    """config.json and tokenizer of a Llama; no weights."""
    config = _llama(scale)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _llama(scale: Scale) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=scale.hidden,
        intermediate_size=scale.mlp,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        num_key_value_heads=scale.kv_heads,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PADDING_ID,
    )


def _tokenizer() -> Any:
    """One that knows every id of the vocabulary, since vLLM checks; prompts are ids, so its words do not matter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {0: "<unk>", 1: "<s>", 2: "</s>", PADDING_ID: "<pad>", IMAGE_ID: "<image>"}
    words = {special.get(number, f"w{number}"): number for number in range(VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def _ids(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1000, VOCAB - 100) for _ in range(count)]


if __name__ == "__main__":
    main()
