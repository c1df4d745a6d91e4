"""Folders of tiny models with random weights, of families other than the pocket models'."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_qwen2_vl(tokenizer: Any, folder: Path) -> Path:
    """Qwen2-VL with 0.2 M parameters. ``tokenizer``: the pocket tokenizer (its image token is the placeholder)."""
    import torch
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.architecture import BOS, EOS, IMAGE, PAD

    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    unused = {"video_token_id": len(tokenizer) + 1, "vision_start_token_id": len(tokenizer) + 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, tie_word_embeddings=False, **unused
    )
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template)
    return export_model(Qwen2VLForConditionalGeneration(config).float(), processor, folder)
