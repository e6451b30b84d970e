"""Through a real server: progress, cancel, refused names, and the workflows as shipped."""

from __future__ import annotations

import time

import pytest

from roundsmith import dev
from roundsmith.tests.models import MODEL_FILE, TEXT_ENCODER_FILE, VAE_FILE

from .client import PromptError
from .workflow import to_prompt

WORKFLOWS = sorted((dev.ROOT / "workflows").glob("*.json"))
INT8 = {"format": "int8_tensorwise", "format.scaling": "row", "format.convrot": "auto"}
RECIPE = {
    "preset": "auto",
    "rounding": "nearest",
    "scale_search": "off",
    "full_precision_matmul": "off",
    "heuristics": False,
    "bias_correction": True,
    "input_scale": "auto",
    "exclude": "",
}


def quantize_file(name, source=f"diffusion_models/{MODEL_FILE}", **changes):
    """A prompt that quantizes a file into the output folder."""
    inputs = {"source": source, "folder": "output", "filename": name, "overwrite": False}
    inputs |= {**INT8, **RECIPE, **changes}
    return {"1": {"class_type": "RoundsmithQuantizeFile", "inputs": inputs}}


def test_the_pack_is_loaded(server):
    assert "IMPORT FAILED" not in server.read_log()
    info = server.get("/object_info")
    ours = {name for name in info if name.startswith("Roundsmith")}
    assert ours == {page.stem for page in (dev.ROOT / "web" / "docs").glob("*.md")}
    assert info["RoundsmithQuantizeModel"]["display_name"] == "Quantize Model"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_as_shipped(server, path):
    prompt = to_prompt(path, server.get("/object_info"))
    for step in prompt.values():
        if step["class_type"] == "RoundsmithQuantizeCLIP":
            # Calibrated rounding of its 85 M weights takes a minute or more on two cores. Text
            # encoders that calibrate themselves are tested in test_quantizing.
            assert step["inputs"]["rounding"] == "auto"
            step["inputs"]["rounding"] = "nearest"
    outputs = server.run(prompt, timeout=400)  # it calibrates itself
    images = [i for output in outputs.values() for i in output.get("images", [])]
    assert any(image["type"] == "output" for image in images)
    assert all((server.base / image["type"] / image["filename"]).exists() for image in images)


def test_progress_names_the_layer(server):
    server.messages.clear()
    outputs = server.run(quantize_file("progress"))
    told = [data for kind, data in server.messages if kind == "roundsmith.progress"]
    assert {(m["node"], m["stage"]) for m in told} == {("1", "quantizing")}
    assert any("img_attn" in m["layer"] or "linear" in m["layer"] for m in told), told
    assert told[-1]["done"] == 1 and told[-1]["index"] == told[-1]["count"]
    assert all(0 <= m["done"] <= 1 and m["elapsed"] >= 0 for m in told)
    result = outputs["1"]["roundsmith"][0]
    assert result["kind"] == "quantize" and result["facts"]["quantized"] == 32
    values = [d for kind, d in server.messages if kind == "progress_state"]
    assert values, "the node's bar moves"


def test_cancel_within_a_second_leaves_nothing(server):
    """Interrupt while the text encoder is being quantized with the slow search."""
    server.messages.clear()
    source = f"text_encoders/{TEXT_ENCODER_FILE}"
    prompt_id = server.queue(quantize_file("cancelled", source, scale_search="on"))
    deadline = time.monotonic() + 60
    while not any(kind == "roundsmith.progress" for kind, _ in server.messages):
        assert time.monotonic() < deadline, server.read_log()[-2000:]
        time.sleep(0.02)
    began = time.monotonic()
    server.post("/interrupt", {})
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(prompt_id, 30)
    assert time.monotonic() - began < 1.0 + 0.3  # the poll's own interval
    assert not [p for p in (server.base / "output").iterdir() if "cancelled" in p.name]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "C:\\evil", "a/../../evil"])
def test_a_destination_outside_is_refused(server, name):
    with pytest.raises(PromptError, match="refused"):
        server.run(quantize_file(name))


def test_an_existing_file_is_refused(server):
    server.run(quantize_file("existing"))
    with pytest.raises(PromptError, match="existing"):
        server.run(quantize_file("existing", exclude="nothing"))


def test_a_source_outside_is_refused(server):
    with pytest.raises(PromptError, match=r"not in list|not among"):
        server.run(quantize_file("x", source="diffusion_models/../../secret.safetensors"))


def test_a_damaged_file_is_named(server):
    path = server.base / "models" / "diffusion_models" / "damaged.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{not a header at")
    prompt = {
        "1": {
            "class_type": "RoundsmithInspectFile",
            "inputs": {"source": "diffusion_models/damaged.safetensors"},
        }
    }
    with pytest.raises(PromptError, match=r"damaged\.safetensors"):
        server.run(prompt)


def test_inspect_shows_formats(server):
    server.run(quantize_file("inspected", folder="diffusion_models"))
    prompt = {
        "1": {
            "class_type": "RoundsmithInspectFile",
            "inputs": {"source": "diffusion_models/inspected.safetensors"},
        }
    }
    text = server.run(prompt)["1"]["text"][0]
    assert "int8_tensorwise" in text and "flux" in text


def test_load_and_save_nodes(server):
    """Every loader into every saver; the checkpoint saved is loaded, quantized and sampled."""
    name = MODEL_FILE.replace(".safetensors", "-int8.safetensors")
    clip = {"files": "1", "files.clip_name1": TEXT_ENCODER_FILE, "files.type": "stable_diffusion"}
    model, text = ["1", 0], ["2", 0]
    prefix = "filename_prefix"
    server.run(
        {
            "1": node("LoadDiffusionModel", unet_name=name),
            "2": node("LoadCLIP", **clip, device="default"),
            "3": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_FILE}},
            "4": node("SaveModel", model=model, **{prefix: "saved/model"}),
            "5": node("SaveCLIP", clip=text, **{prefix: "saved/clip"}),
            "6": node("SaveCheckpoint", model=model, vae=["3", 0], **{prefix: "saved/all"}),
        }
    )
    saved = sorted(path.name for path in (server.base / "output" / "saved").iterdir())
    expected = ["all_00001_", "clip_clip_l_00001_", "model_00001_"]
    assert saved == [f"{stem}.safetensors" for stem in expected]
    checkpoint = server.base / "models" / "checkpoints" / "saved.safetensors"
    (server.base / "output" / "saved" / "all_00001_.safetensors").rename(checkpoint)
    outputs = server.run(
        {
            "1": node("LoadCheckpoint", ckpt_name="saved.safetensors"),
            "2": node("QuantizeModel", model=model, **{**INT8, **RECIPE, "format": "nvfp4"}),
            "3": node("SaveModel", model=["2", 0], **{prefix: "saved/again"}),
        }
    )
    assert "32 layers quantized" in outputs["2"]["text"][0]


def node(name, **inputs):
    """A node of the pack in a prompt."""
    return {"class_type": f"Roundsmith{name}", "inputs": inputs}


def test_templates_and_help_pages_are_served(server):
    """The template browser lists the workflows; the help panel finds the pages."""
    templates = server.get("/workflow_templates")["roundsmith"]
    assert {path.stem for path in WORKFLOWS} <= set(templates)
    assert "# " in server.text("/extensions/roundsmith/docs/RoundsmithQuantizeModel.md")
