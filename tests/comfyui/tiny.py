"""Tiny models of ComfyUI's families, with random weights: its own classes, a few layers each."""

from __future__ import annotations

from typing import Any

import comfy.supported_models as supported
import torch
from comfy.model_patcher import ModelPatcher

FLUX: dict[str, Any] = {
    **{"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2},
    **{"hidden_size": 64, "num_heads": 2, "axes_dim": [8, 12, 12], "theta": 10000},
    **{"mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "qkv_bias": True},
    **{"context_in_dim": 48, "vec_in_dim": 40, "guidance_embed": True, "txt_ids_dims": []},
}
FLUX_2: dict[str, Any] = {
    **{**FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1},
    **{"axes_dim": [8, 8, 8, 8], "vec_in_dim": None, "global_modulation": True},
    **{"mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "mlp_ratio": 3.0},
    **{"default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3]},
}
CHROMA: dict[str, Any] = {
    **{k: v for k, v in FLUX.items() if k != "guidance_embed"},
    **{"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64},
    **{"out_dim": 64, "hidden_dim": 96, "n_layers": 2, "vec_in_dim": None},
}
UNET: dict[str, Any] = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32},
    **{"num_res_blocks": [1, 1], "channel_mult": (1, 2), "transformer_depth": [1, 1]},
    **{"transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1]},
    **{"use_spatial_transformer": True, "context_dim": 48, "num_head_channels": 16},
    **{"legacy": False, "num_heads": -1, "use_linear_in_transformer": False},
}
WAN: dict[str, Any] = {
    **{"image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "dim": 64},
    **{"ffn_dim": 96, "freq_dim": 32, "text_dim": 48, "num_heads": 2, "num_layers": 2},
}
HUNYUAN_VIDEO: dict[str, Any] = {
    **{"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 40},
    **{"patch_size": [1, 2, 2], "axes_dim": [8, 12, 12], "context_in_dim": 48, "mlp_ratio": 4.0},
    **{"hidden_size": 64, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "theta": 256},
    **{"qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False},
    **{"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False},
}
LUMINA: dict[str, Any] = {
    **{"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 2},
    **{"cap_feat_dim": 48, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [16, 16, 16]},
    **{"axes_lens": [300, 512, 512], "qk_norm": True, "n_refiner_layers": 1},
    **{"multiple_of": 32, "ffn_dim_multiplier": 2.0},
}
COSMOS: dict[str, Any] = {
    **{"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16},
    **{"out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64},
    **{"num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": 48, "pos_emb_cls": "rope3d"},
    **{"pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 16},
    **{"pos_emb_interpolation": "crop", "extra_per_block_abs_pos_emb": False},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("Flux", FLUX),
    "flux, no guidance": ("FluxSchnell", {**FLUX, "guidance_embed": False}),
    "flux 2": ("Flux2", FLUX_2),
    "chroma": ("Chroma", CHROMA),
    "stable diffusion 1.5": ("SD15", UNET),
    "sdxl": (
        "SDXL",
        {**UNET, "num_classes": "sequential", "adm_in_channels": 24 + 6 * 256}
        | {"use_linear_in_transformer": True, "model_channels": 64},
    ),
    "stable diffusion 3": (
        "SD3",
        {"in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None}
        | {"adm_in_channels": 40, "num_patches": 4096, "pos_embed_max_size": 64}
        | {"context_size": 48, "qkv_bias": True, "pos_embed_scaling_factor": None}
        | {"context_embedder_config": {"target": "", "params": {"in_features": 48}}},
    ),
    "wan 2.1 text to video": ("WAN21_T2V", WAN),
    "wan 2.1 image to video": ("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}),
    "wan 2.1 vace": (
        "WAN21_Vace",
        {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
    ),
    "wan 2.2": ("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}),
    "hunyuan video": ("HunyuanVideo", HUNYUAN_VIDEO),
    "hunyuan image 2.1": (
        "HunyuanImage21",
        {**HUNYUAN_VIDEO, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1]}
        | {"axes_dim": [16, 16], "vec_in_dim": None, "byt5": True, "guidance_embed": False},
    ),
    "hunyuan video 1.5": (
        "HunyuanVideo15",
        {**HUNYUAN_VIDEO, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1]}
        | {"vec_in_dim": None, "byt5": True, "vision_in_dim": 40, "guidance_embed": False}
        | {"use_cond_type_embedding": True, "meanflow_sum": True},
    ),
    "qwen-image": (
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2}
        | {"attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 48}
        | {"axes_dims_rope": (8, 12, 12)},
    ),
    "lumina 2": ("Lumina2", LUMINA),
    "z-image": (
        "ZImage",
        {**LUMINA, "dim": 256, "n_kv_heads": 2, "axes_dims": [32, 48, 48]}
        | {"z_image_modulation": True, "time_scale": 1000.0}
        | {"pad_tokens_multiple": 32, "rope_theta": 256.0},
    ),
    "ltx video": (
        "LTXV",
        {"image_model": "ltxv", "cross_attention_dim": 64, "attention_head_dim": 32}
        | {"num_attention_heads": 2, "caption_channels": 48, "num_layers": 2},
    ),
    "auraflow": (
        "AuraFlow",
        {"dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 64}
        | {"cond_seq_dim": 48, "max_seq": 256},
    ),
    "pixart sigma": (
        "PixArtSigma",
        {"image_model": "pixart_sigma", "hidden_size": 64, "depth": 2, "num_heads": 2}
        | {"caption_channels": 48, "model_max_length": 300, "micro_condition": False}
        | {"pe_interpolation": 1.0},
    ),
    "hunyuan dit": (
        "HunyuanDiT",
        {"image_model": "hydit", "hidden_size": 64, "depth": 2, "num_heads": 2}
        | {"text_states_dim": 48, "text_states_dim_t5": 40, "mlp_ratio": 4.0},
    ),
    "hidream": (
        "HiDream",
        {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16}
        | {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32}
        | {"num_attention_heads": 2, "caption_channels": [48, 40], "text_emb_dim": 24}
        | {"axes_dims_rope": (16, 8, 8), "llama_layers": [0, 1], "max_resolution": (128, 128)},
    ),
    "omnigen 2": (
        "Omnigen2",
        {"image_model": "omnigen2", "hidden_size": 96, "num_layers": 1, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 1, "axes_dim_rope": (16, 16, 16)}
        | {"axes_lens": (300, 512, 512), "text_feat_dim": 48, "multiple_of": 32},
    ),
    "cosmos predict 2": ("CosmosT2IPredict2", COSMOS),
    "kandinsky 5": (
        "Kandinsky5",
        {"image_model": "kandinsky5", "in_visual_dim": 16, "visual_embed_dim": 132}
        | {"in_text_dim": 48, "in_text_dim2": 40, "time_dim": 32, "model_dim": 64, "ff_dim": 96}
        | {"num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (8, 12, 12)},
    ),
    "cogvideox": (
        "CogVideoX_T2V",
        {"image_model": "cogvideox", "num_attention_heads": 6, "attention_head_dim": 32}
        | {"in_channels": 16, "out_channels": 16, "time_embed_dim": 32, "text_embed_dim": 48}
        | {"num_layers": 2, "patch_size": 2},
    ),
    "krea 2": (
        "Krea2",
        {"image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 48, "heads": 2}
        | {"multiplier": 2, "layers": 1, "patch": 2, "channels": 16, "txtlayers": 3}
        | {"txtheads": 2, "txtkvheads": 2, "kvheads": 1},
    ),
}
"""By name: ComfyUI's configuration and what it is asked to build."""


def tiny_model(name: str, seed: int = 0) -> ModelPatcher:
    """One of :data:`MODELS`, on the CPU in float32, weights small and random."""
    config, options = MODELS[name]
    made = getattr(supported, config)({**options, "dtype": torch.float32})
    model = made.get_model({}, "")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own, tensor in (*model.named_parameters(), *model.diffusion_model.named_buffers()):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.ndim >= 2:
                fan_in = max(tensor[0].numel(), 1)
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
            elif own.endswith(("weight", "scale")):
                tensor.fill_(1.0)
            elif isinstance(tensor, torch.nn.Parameter):
                tensor.zero_()
    model.eval()
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
