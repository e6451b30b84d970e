"""What the browser asks of files: names ComfyUI lists, answered by the server."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request

import pytest

from roundsmith.bridge import estimating, naming, timing
from roundsmith.bridge.model_files import facts, kind_of, match
from roundsmith.errors import CheckpointError
from roundsmith.tests.models import MODEL_FILE, QUANTIZED_FILE, TEXT_ENCODER_FILE

from .client import PromptError
from .test_server import INT8, RECIPE

OUTSIDE = [
    "/etc/passwd",
    "diffusion_models/../../secret.safetensors",
    "../secret.safetensors",
    "loras/x.safetensors",
    "output/x.safetensors",
    "",
]


def test_facts_of_a_file(base, quantized):
    """Weights by format, the size, and who reads it."""
    found = facts(f"diffusion_models/{QUANTIZED_FILE}")
    assert found["formats"] == {"int8_tensorwise": 32, "bf16": 8}
    assert found["bytes"] == (base / "models/diffusion_models" / QUANTIZED_FILE).stat().st_size
    assert found["stock"] and found["roundsmith"]
    ours = facts(f"diffusion_models/{quantized('asym_w4a8_int8').name}")
    assert not ours["stock"] and ours["why_not_stock"] and ours["roundsmith"]


def test_a_changed_file_is_read_again(base):
    path = base / "models" / "diffusion_models" / "changing.safetensors"
    shutil.copyfile(path.with_name(MODEL_FILE), path)
    assert facts("diffusion_models/changing.safetensors")["formats"] == {"bf16": 40}
    shutil.copyfile(path.with_name(QUANTIZED_FILE), path)
    assert "int8_tensorwise" in facts("diffusion_models/changing.safetensors")["formats"]
    path.unlink()


def test_a_broken_file_is_an_answer(base):
    """Not an error of the route: the loader shows it. No folder of this machine is in it."""
    path = base / "models" / "diffusion_models" / "broken.safetensors"
    path.write_bytes(b"no header")
    found = facts("diffusion_models/broken.safetensors")
    assert "diffusion_models/broken.safetensors" in found["problem"]
    assert str(base) not in found["problem"]
    path.unlink()


def test_a_dropped_file_is_found_by_name_and_size(demo):
    size = demo.stat().st_size
    found = match(MODEL_FILE, size)
    assert found["candidates"] == [f"diffusion_models/{MODEL_FILE}"]
    found = match(MODEL_FILE, size + 1)
    assert found["candidates"] == [] and found["other_size"] == [f"diffusion_models/{MODEL_FILE}"]
    assert match("other.safetensors", size)["candidates"] == []


@pytest.mark.parametrize(
    ("tensors", "folder"),
    [
        (["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight",
          "guidance_in.in_layer.weight"], "diffusion_models"),
        (["text_model.encoder.layers.0.self_attn.q_proj.weight",
          "text_model.embeddings.token_embedding.weight"], "text_encoders"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"] * 1
         + [f"model.diffusion_model.single_blocks.{i}.linear1.weight" for i in range(9)]
         + ["vae.decoder.conv_in.weight"], "checkpoints"),
        (["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"], "loras"),
        (["encoder.conv_in.weight", "decoder.conv_out.weight"], "vae"),
        (["something"], ""),
    ],
    ids=["diffusion", "text encoder", "checkpoint", "lora", "vae", "unknown"],
)  # fmt: skip
def test_where_a_file_belongs(tensors, folder):
    assert kind_of(tensors)[1] == folder


def test_no_answer_names_a_folder_of_this_machine(base, demo):
    text = json.dumps([match("x.safetensors", 1, ["double_blocks.0"]), facts_of_demo()])
    assert str(base) not in text and str(demo.parent) not in text


def facts_of_demo():
    return facts(f"diffusion_models/{MODEL_FILE}")


@pytest.mark.parametrize("source", OUTSIDE)
def test_routes_take_listed_names_only(server, source):
    with pytest.raises(PromptError, match="is not among ComfyUI's models"):
        server.post("/roundsmith/file", {"source": source})


def test_routes_refuse_what_they_do_not_expect(server):
    for route, body in (
        ("file", {}),
        ("file", {"source": 3}),
        ("match", {"name": "../x.safetensors", "size": 3}),
        ("match", {"name": "x", "size": "3"}),
        ("match", {"name": "x", "size": 3, "tensors": [1]}),
        ("match", {"name": "x", "size": 3, "tensors": ["x" * 501]}),
        ("match", {"name": "x", "size": 3, "tensors": ["x"] * 20_001}),
        ("estimate", {"prompt": []}),
        ("estimate", {"prompt": {"1": 5}}),
    ):
        with pytest.raises(PromptError, match=r"wanted|no inputs"):
            server.post(f"/roundsmith/{route}", body)


@pytest.mark.parametrize("route", ["file", "match", "estimate"])
def test_routes_refuse_other_origins(server, route):
    """As ComfyUI's own: a page of somewhere else cannot ask."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/roundsmith/{route}", b"{}", method="POST"
    )
    request.add_header("Origin", "http://evil.example")
    request.add_header("Sec-Fetch-Site", "cross-site")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403


PROMPT = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": MODEL_FILE}},
    "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": "x"}},
    "3": {"class_type": "RoundsmithQuantizeModel",
          "inputs": {"model": ["2", 0], "rounding": "nearest", "format": "int8_tensorwise"}},
    "4": {"class_type": "RoundsmithCalibrateSampler",
          "inputs": {"model": ["1", 0], "seeds": 4, "steps": 10, "cfg": 3.0}},
    "5": {"class_type": "RoundsmithQuantizeFile",
          "inputs": {"source": f"text_encoders/{TEXT_ENCODER_FILE}", "rounding": "auto"}},
    "6": {"class_type": "RoundsmithQuantizeModel", "inputs": {"model": ["9", 0]}},
}  # fmt: skip


def test_an_estimate_follows_the_files_and_what_was_measured(demo, encoder, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_file", lambda: tmp_path / "speed.json")
    steps = {step["node"]: step for step in estimating.estimate(PROMPT)["steps"]}
    assert set(steps) == {"3", "4", "5"}, "6 has no file behind it"
    rates = timing.FIRST_GUESS["cpu"]
    gigabytes = demo.stat().st_size / 1e9
    assert steps["3"]["seconds"] == pytest.approx(gigabytes * rates["nearest"])
    assert steps["4"]["seconds"] == pytest.approx(gigabytes * rates["sampling"] * 4 * 10 * 2)
    assert steps["5"]["what"] == "nearest" and not steps["5"]["measured"]
    clock = iter([100.0, 107.0])
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    with timing.measured("nearest", encoder.stat().st_size):
        pass
    steps = {step["node"]: step for step in estimating.estimate(PROMPT, ["5"])["steps"]}
    assert set(steps) == {"5"}
    assert steps["5"]["measured"] and steps["5"]["seconds"] == pytest.approx(7.0)


def test_a_run_that_fails_is_not_remembered(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_file", lambda: tmp_path / "speed.json")
    with pytest.raises(KeyError), timing.measured("nearest", 1e9):
        raise KeyError
    assert not timing.seconds_for("nearest", 1e9)[1]
    (tmp_path / "speed.json").write_text("[1, 2", encoding="utf-8")
    assert not timing.seconds_for("nearest", 1e9)[1], "a broken file is as none"


def test_name_patterns():
    def name(pattern):
        return naming.new_name(pattern, "diffusion_models/sub/a.b.safetensors", "int8", "auto")

    assert name("") == name("{name}-{format}") == "sub/a.b-int8"
    assert name("new/{rounding}/{format}") == "new/auto/int8"
    assert name("plain") == "plain"
    assert len(name("{date}")) == 10
    with pytest.raises(CheckpointError, match=r"\{nam\} is not one of \{name\}"):
        name("{nam}")


@pytest.mark.parametrize("pattern", ["../{name}", "/{name}", "{name}/../../../x", "C:\\{name}"])
def test_a_pattern_leads_nowhere_else(server, pattern):
    inputs = {"source": f"diffusion_models/{MODEL_FILE}", "folder": "output", "filename": pattern}
    inputs |= {**INT8, **RECIPE, "overwrite": False}
    node = {"class_type": "RoundsmithQuantizeFile", "inputs": inputs}
    with pytest.raises(PromptError, match="refused"):
        server.run({"1": node})


def test_savers_name_files_by_their_model(server):
    """The loaded file's name and the format, through Quantize Model too."""
    prompt = {
        "1": {"class_type": "UNETLoader",
              "inputs": {"unet_name": MODEL_FILE, "weight_dtype": "default"}},
        "2": {"class_type": "RoundsmithQuantizeModel",
              "inputs": {"model": ["1", 0], **INT8, **RECIPE}},
        "3": {"class_type": "RoundsmithSaveModel",
              "inputs": {"model": ["2", 0], "filename_prefix": "named/{name}-{format}"}},
        "4": {"class_type": "RoundsmithSaveModel",
              "inputs": {"model": ["1", 0], "filename_prefix": "named/{name}-{format}"}},
    }  # fmt: skip
    server.run(prompt)
    made = sorted(path.name for path in (server.base / "output" / "named").iterdir())
    stem = MODEL_FILE.removesuffix(".safetensors")
    assert made == [
        f"{stem}-copy_00001_.safetensors",
        f"{stem}-int8_tensorwise-row-convrot_00001_.safetensors",
    ]


def test_browsers_ask_for_the_packs_scripts_again(server):
    """After an update of the pack, none goes on with a script of before."""
    url = f"http://127.0.0.1:{server.port}/extensions/roundsmith/app/frontend.mjs"
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.headers["Cache-Control"] == "no-cache"
        seen = response.headers["ETag"]
        assert response.headers["Content-Type"].split(";")[0].endswith("/javascript")
    request = urllib.request.Request(url, headers={"If-None-Match": seen})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=30)
    assert answer.value.code == 304
