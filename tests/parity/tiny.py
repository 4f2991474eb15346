"""Tiny pipelines of diffusers with random weights, as diffusers itself makes and saves them."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "an", "red", "cat", "dog", "photo", "of", "blurry", "house")


def clip_tokenizer(folder: Path, length: int = 16) -> Any:
    """Letters and a few words."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length, pad_token="<|endoftext|>"
    )


def clip_encoder(width: int = 32, projection: bool = False, length: int = 16) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        hidden_act="gelu",
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *letters], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=inner, extra_ids=0, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def t5_encoder(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=32, d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, feed_forward_proj="gated-gelu"
        )
    ).eval()


def autoencoder(channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    ).eval()


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **options,
        }
    ).eval()


SMALL = 0.05
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def stable_diffusion(folder: Path, **table: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    return StableDiffusionPipeline(
        unet=unet(),
        vae=autoencoder(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(folder / "clip"),
        scheduler=DDIMScheduler(**TABLE, clip_sample=False, **table),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_v(folder: Path) -> Any:
    return stable_diffusion(folder, prediction_type="v_prediction")


def stable_diffusion_2(folder: Path) -> Any:
    """Of v, ending in pure noise."""
    return stable_diffusion(
        folder, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def stable_diffusion_xl(folder: Path) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    return StableDiffusionXLPipeline(
        unet=unet(
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
        ),
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(folder / "clip"),
        text_encoder_2=clip_encoder(projection=True),
        tokenizer_2=clip_tokenizer(folder / "clip_2"),
        scheduler=DDIMScheduler(**TABLE, clip_sample=False),
    )


def dit(folder: Path) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    ).eval()
    with (
        torch.no_grad()
    ):  # weights at random say far more than noise, and latents would grow beyond what float32 tells apart
        transformer.proj_out_2.weight.mul_(SMALL)
        transformer.proj_out_2.bias.mul_(SMALL)
    return DiTPipeline(
        transformer=transformer,
        vae=autoencoder(),
        scheduler=DDIMScheduler(**TABLE, clip_sample=False),
        id2label={"0": "tench, Tinca tinca", "207": "golden retriever"},
    )


def stable_diffusion_3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=clip_encoder(16, projection=True),
        tokenizer=clip_tokenizer(folder / "clip"),
        text_encoder_2=clip_encoder(16, projection=True),
        tokenizer_2=clip_tokenizer(folder / "clip_2"),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
    )


def flux(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(folder / "clip"),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
