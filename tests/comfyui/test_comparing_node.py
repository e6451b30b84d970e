"""The node Compare Models: what it gives, and what is left where its threshold fails the run."""

from __future__ import annotations

import re
from pathlib import Path

import comfy.sd
import comfy.utils
import pytest
import torch
from PIL import Image

from roundsmith.errors import QualityError
from roundsmith.nodes.compare_models import CompareModels
from roundsmith.tests.models import MODEL_FILE, QUANTIZED_FILE, TEXT_ENCODER_FILE, VAE_FILE

from .client import PromptError
from .support import conditioning, load_stock, snr

STEPS = 3


@pytest.fixture(scope="module")
def vae(base):
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(base / "models" / "vae" / VAE_FILE)))


@pytest.fixture
def run_node(demo, quantized):
    """Execute the node on the demo model and a format's file."""

    def run(format="nvfp4", **options):
        prompt = conditioning()
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        with torch.inference_mode():
            return CompareModels.execute(
                *(load_stock(demo), load_stock(quantized(format)), prompt, prompt, latent, 1),
                *(STEPS, 1.0, "euler", "simple"),
                **options,
            )

    return run


def test_what_the_node_gives(run_node, vae):
    model, beside, chart, *latents, score, report = run_node(vae=vae).result
    assert model.model.model_config.unet_config["image_model"] == "flux"
    assert beside.shape == (1, 256 + 28, 3 * 256 + 8, 3)
    assert chart.ndim == 4 and chart.shape[-1] == 3 and chart.min() >= 0 and chart.max() <= 1
    expected = snr(latents[1]["samples"], latents[0]["samples"])
    assert score == pytest.approx(expected, abs=1e-3)
    assert "executed dB" in report and "... and" in report


def test_the_threshold_fails_the_run(run_node):
    assert run_node(min_snr=5.0).result[5] > 5
    with pytest.raises(QualityError, match=r"final latent: the SNR is \d\d\.\d dB, below 90 dB"):
        run_node(min_snr=90.0)
    with pytest.raises(QualityError, match=r"worst layers: \S+ \(.*dB\), \S+ \(.*dB\), \S+ \("):
        run_node(min_snr=90.0)


def saved_files(error):
    """The files an error names, each of which is a picture."""
    named = re.findall(r"(?:pictures|chart): ([^;]+);", str(error))
    files = [Path(path) for part in named for path in part.split(", ")]
    for path in files:
        with Image.open(path) as picture:
            assert picture.width > 20
    return files


def test_a_run_that_fails_leaves_its_pictures(run_node, vae, base):
    before = set((base / "temp").iterdir())
    with pytest.raises(QualityError, match=r"below 90 dB.*; keep those layers") as failed:
        run_node(min_snr=90.0, vae=vae)
    files = saved_files(failed.value)
    assert len(files) == 2 and set((base / "temp").iterdir()) - before == set(files)


def test_a_full_disk_does_not_hide_why_it_failed(run_node, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("comfy_api.latest._ui.ImageSaveHelper.save_images", full)
    with pytest.raises(QualityError, match=r"below 90 dB.*no space left.*keep those layers"):
        run_node(min_snr=90.0)


def test_a_broken_model_fails_by_name_too(demo):
    broken = load_stock(demo)
    broken.set_model_unet_function_wrapper(lambda apply, given: given["input"] * torch.nan)
    prompt, latent = conditioning(), {"samples": torch.zeros(1, 16, 8, 8)}
    with torch.inference_mode(), pytest.raises(QualityError, match="below 5 dB") as failed:
        CompareModels.execute(
            *(load_stock(demo), broken, prompt, prompt, latent, 1, STEPS, 1.0, "euler", "simple"),
            min_snr=5.0,
        )
    assert len(saved_files(failed.value)) == 2


def test_over_the_server(server):
    """In a graph: pictures and text on the node; below the threshold the run fails by name."""
    inputs = {
        "reference": ["1", 0],
        "quantized": ["2", 0],
        "positive": ["4", 0],
        "negative": ["4", 0],
        "latent_image": ["5", 0],
        "vae": ["6", 0],
        "seed": 3,
        "steps": 2,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "min_snr": 10.0,
        "worst": 4,
    }
    loader = "RoundsmithLoadDiffusionModel"
    prompt = {
        "1": {"class_type": loader, "inputs": {"unet_name": MODEL_FILE}},
        "2": {"class_type": loader, "inputs": {"unet_name": QUANTIZED_FILE}},
        "3": {
            "class_type": "CLIPLoader",
            "inputs": {"clip_name": TEXT_ENCODER_FILE, "type": "stable_diffusion"},
        },
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["3", 0], "text": "a four"}},
        "5": {
            "class_type": "EmptySD3LatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "6": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_FILE}},
        "7": {"class_type": "RoundsmithCompareModels", "inputs": inputs},
        "8": {
            "class_type": "RoundsmithSaveModel",
            "inputs": {"model": ["7", 0], "filename_prefix": "compared/good"},
        },
    }
    folder = server.base / "output" / "compared"
    server.messages.clear()
    shown_on_node = server.run(prompt)["7"]
    assert shown_on_node["images"] and "final latent" in shown_on_node["text"][0]
    told = [data for kind, data in server.messages if kind == "roundsmith.progress"]
    stages = list(dict.fromkeys(m["stage"] for m in told if m["node"] == "7"))
    assert stages == ["reference", "scoring", "compared"]
    (result,) = shown_on_node["roundsmith"]
    assert result["facts"]["snr"] > 10 and result["report"]
    assert [path.name[:4] for path in folder.iterdir()] == ["good"]
    prompt["7"]["inputs"]["min_snr"] = 150.0
    prompt["8"]["inputs"]["filename_prefix"] = "compared/bad"
    with pytest.raises(PromptError, match=r"below 150 dB.*worst layers: .*exclude"):
        server.run(prompt)
    assert [path.name[:4] for path in folder.iterdir()] == ["good"], "a saver behind it did not run"
