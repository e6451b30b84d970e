"""The demo's files in stock ComfyUI: its own nodes load them and agree with our own network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy.latent_formats import Flux as FluxLatents
from comfy_extras.nodes_sd3 import EmptySD3LatentImage
from latent_preview import Latent2RGBPreviewer
from safetensors.torch import load_file
from torch import Tensor

import nodes
from roundsmith.converters.demo import load_flux, signal_to_noise
from roundsmith.tests.models import (
    FOLDER,
    MODEL_FILE,
    TEXT_ENCODER_FILE,
    VAE_FILE,
    latents,
    taesd,
    text,
)
from roundsmith.tests.models.sampling import sample, starting_noise

DIGITS = (3, 7, 8)
STEPS = 12
SAME = 35.0
"""dB above which two latents count as the same."""


@pytest.fixture(scope="module")
def made(base: Path) -> dict[str, Any]:
    """What stock nodes made of the demo's files, the sampler's seed being the digit."""
    (clip,) = nodes.CLIPLoader().load_clip(TEXT_ENCODER_FILE, "stable_diffusion")
    (model,) = nodes.UNETLoader().load_unet(MODEL_FILE, "default")
    (vae,) = nodes.VAELoader().load_vae(VAE_FILE)
    found: dict[str, Any] = {"config": type(model.model.model_config).__name__, "vae": vae}
    with torch.inference_mode():
        for digit in DIGITS:
            (cond,) = nodes.CLIPTextEncode().encode(clip, text.PROMPTS[digit])
            empty = EmptySD3LatentImage.execute(64, 64, 1).args[0]
            (latent,) = nodes.KSampler().sample(
                model, digit, STEPS, 1.0, "euler", "simple", cond, cond, empty, 1.0
            )
            found[f"context {digit}"] = cond[0][0]
            found[f"pooled {digit}"] = cond[0][1]["pooled_output"]
            found[f"latent {digit}"] = latent["samples"]
            (found[f"picture {digit}"],) = nodes.VAEDecode().decode(vae, latent)
    return found


def in_sampler_scale(latent: Tensor) -> Tensor:
    """A latent as ComfyUI passes it between nodes, in the scale of the network."""
    return (latent - taesd.VAE_SHIFT) * taesd.VAE_SCALE


def test_stock_comfyui_takes_the_model_for_flux_schnell(made):
    assert made["config"] == "FluxSchnell"


@pytest.mark.parametrize("digit", DIGITS)
def test_the_text_encoder_gives_what_our_own_code_gives(made, digit):
    context, pooled = text.encode([text.PROMPTS[digit]])
    assert signal_to_noise(context, made[f"context {digit}"]) > SAME
    assert signal_to_noise(pooled, made[f"pooled {digit}"]) > SAME


def test_every_word_has_the_code_of_comfyui_s_tokenizer():
    from comfy.sd1_clip import SD1Tokenizer

    prompt = " ".join(text.WORDS)
    (codes,) = SD1Tokenizer().tokenize_with_weights(prompt)["l"]
    assert [code for code, _ in codes] == text.tokenize(prompt)


@pytest.mark.parametrize("digit", DIGITS)
def test_the_sampler_arrives_at_the_same_latent(made, digit):
    model = load_flux(load_file(FOLDER / MODEL_FILE))
    prompt = text.encode([text.PROMPTS[digit]])
    ours = sample(model, starting_noise(1, digit), *prompt, STEPS)
    assert signal_to_noise(ours, in_sampler_scale(made[f"latent {digit}"])) > SAME


@pytest.mark.parametrize("digit", DIGITS)
def test_the_decoder_paints_the_same_picture(made, digit):
    decoder = taesd.load_decoder(load_file(FOLDER / VAE_FILE))
    with torch.inference_mode():
        picture = decoder(in_sampler_scale(made[f"latent {digit}"])).clamp(0, 1).movedim(1, -1)
    assert made[f"picture {digit}"].shape == (1, 64, 64, 3)
    assert signal_to_noise(picture, made[f"picture {digit}"]) > SAME


@pytest.mark.parametrize("digit", DIGITS)
def test_the_preview_shows_the_digit(made, digit):
    latent, flux = made[f"latent {digit}"], FluxLatents()
    previewer = Latent2RGBPreviewer(flux.latent_rgb_factors, flux.latent_rgb_factors_bias)
    shown = np.array(previewer.decode_latent_to_preview(flux.process_in(latent)))
    ours = latents.preview(in_sampler_scale(latent))[0].movedim(0, -1)
    assert np.abs(shown / 255 - ours.numpy()).max() < 0.02


@pytest.mark.parametrize("digit", DIGITS)
def test_a_picture_encodes_back_to_about_its_latent(made, digit):
    (back,) = nodes.VAEEncode().encode(made["vae"], made[f"picture {digit}"])
    latent = in_sampler_scale(made[f"latent {digit}"])
    assert signal_to_noise(latent, in_sampler_scale(back["samples"])) > 8
