"""Stand-ins: folders of tiny models with random weights, of the architectures that are supported.

    folder = STANDINS["qwen2_vl"](standin_tokenizer(), Path("somewhere"))

Right in form and meaningless in content: what tests and `adamllm run --dry-run` use in place of a large model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adamllm_ray.pocket.architecture import SPECIAL_TOKENS, build_tokenizer
from adamllm_ray.synthesis.protocol import SPECIAL

TEXTS = [
    "Describe the image. Answer with a precise response. Answer with an informative response.",
    "user assistant system Question: what is shown? Therefore, the answer is yes, no. 0 1 2 3 4 5 6 7 8 9",
] * 20


def standin_tokenizer() -> Any:
    """The pocket tokenizer's kind, with the tokens that `synthesis.protocol` llama3_official needs."""
    tokenizer = build_tokenizer(TEXTS, 600)
    tokenizer.add_tokens([token for token in SPECIAL if token not in SPECIAL_TOKENS], special_tokens=True)
    return tokenizer


def tiny_llava_next(tokenizer: Any, folder: Path) -> Path:
    """LLaVA-NeXT with 0.3 M parameters. ``tokenizer``: the pocket tokenizer."""
    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.architecture import Size, build_processor, build_vlm

    size = Size(hidden=64, layers=2, mlp=128, vision_hidden=64, vision_layers=3)
    return export_model(build_vlm(len(tokenizer), size), build_processor(tokenizer, size), folder)


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
    tokenizer.add_tokens(["<|vision_start|>", "<|video_pad|>"], special_tokens=True)  # vLLM looks for the latter
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
    unused = {"video_token_id": len(tokenizer) - 1, "vision_start_token_id": len(tokenizer) - 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, tie_word_embeddings=False, **unused
    )
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template)
    return export_model(Qwen2VLForConditionalGeneration(config).float(), processor, folder)


def tiny_idefics3(tokenizer: Any, folder: Path) -> Path:
    """Idefics3 (which SmolVLM 1 is) with 0.2 M parameters; an image is cut into 2 x 2 tiles, if it is square.

    ``tokenizer``: the pocket tokenizer; the tokens that Idefics3 puts around tiles are added to it.
    """
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.architecture import BOS, EOS, IMAGE, PAD

    torch.manual_seed(0)
    around = ["<global-img>", *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))]
    tokenizer.add_tokens(around, special_tokens=True)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 7}
    config = Idefics3Config(text_config=text, vision_config=vision, image_token_id=IMAGE, scale_factor=2)
    config.pad_token_id = PAD
    model = Idefics3ForConditionalGeneration(config).float()
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = BOS, [EOS], PAD
    return export_model(model, processor, folder)


def tiny_mllama(tokenizer: Any, folder: Path) -> Path:
    """Mllama (Llama 3.2 Vision), which vLLM no longer has, with 0.3 M parameters and 2 of 4 tiles in use.

    ``tokenizer``: the pocket tokenizer; its image token is the placeholder.
    """
    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.architecture import BOS, EOS, IMAGE, PAD

    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "cross_attention_layers": [1],
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    vision: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"intermediate_size": 128, "image_size": 28, "patch_size": 14, "vision_output_dim": 128}
    vision |= {"intermediate_layers_indices": [0]}
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    model = MllamaForConditionalGeneration(config).float()
    with torch.no_grad():  # as shipped, gates of zero keep the picture out
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(1.0)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = BOS, [EOS], PAD
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
    processor = MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    return export_model(model, processor, folder)


STANDINS = {
    "llava_next": tiny_llava_next,
    "qwen2_vl": tiny_qwen2_vl,
    "idefics3": tiny_idefics3,
    "mllama": tiny_mllama,
}
