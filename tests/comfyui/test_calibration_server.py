"""Calibrating through a real server: the nodes as a person queues them, once and again."""

from __future__ import annotations

import re
import time

import pytest

from roundsmith.converters.calibration import Calibration
from roundsmith.tests.models import MODEL_FILE, TEXT_ENCODER_FILE

from .client import PromptError

CAPTURE = {"max_tokens": 512, "memory_mb": 0, "layers": ""}
SAMPLING = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def stock(name, **inputs):
    return {"class_type": name, "inputs": inputs}


def ours(name, **inputs):
    return stock(f"Roundsmith{name}", **inputs)


def loaded(text="a handwritten three"):
    """Model, text encoder, a prompt and an empty latent: nodes 1 to 4."""
    clip = {"clip_name": TEXT_ENCODER_FILE, "type": "stable_diffusion", "device": "default"}
    return {
        "1": stock("UNETLoader", unet_name=MODEL_FILE, weight_dtype="default"),
        "2": stock("CLIPLoader", **clip),
        "3": stock("CLIPTextEncode", clip=["2", 0], text=text),
        "4": stock("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    }


def calibration_graph(prefix, seeds=2, **changes):
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0]}
    links["latent_image"] = ["4", 0]
    options = {"seed": 7, "seeds": seeds, **SAMPLING, **CAPTURE, **changes}
    return {
        **loaded(),
        "5": ours("CalibrateSampler", **links, **options),
        "6": ours("SaveCalibration", calibration=["5", 0], filename_prefix=prefix),
    }


def capture_graph(prefix, seed=1, after=("10", 0), **changes):
    """A guider, a custom sampler, and the recording around them."""
    return {
        **loaded(),
        "5": ours("CaptureActivations", model=["1", 0], **{**CAPTURE, **changes}),
        "6": stock("BasicGuider", model=["5", 0], conditioning=["3", 0]),
        "7": stock("KSamplerSelect", sampler_name="euler"),
        "8": stock(
            "BasicScheduler", model=["5", 0], scheduler="simple", steps=2, denoise=1.0
        ),
        "9": stock("RandomNoise", noise_seed=seed),
        "10": stock(
            "SamplerCustomAdvanced", noise=["9", 0], guider=["6", 0], sampler=["7", 0],
            sigmas=["8", 0], latent_image=["4", 0],
        ),
        "11": ours("FinishCapture", capture=["5", 1], after=list(after)),
        "12": ours("SaveCalibration", calibration=["11", 0], filename_prefix=prefix),
        "13": stock("SaveLatent", samples=["11", 1], filename_prefix=f"{prefix}-latent"),
    }  # fmt: skip


def saved(server, prefix):
    """Calibrations saved under a prefix, in order."""
    files = sorted((server.base / "output").glob(f"{prefix}_*.safetensors"))
    return [Calibration.load(path) for path in files]


def executed(server):
    """Nodes that ran, by the messages; forgets them."""
    ran = [d["node"] for kind, d in server.messages if kind == "executing" and d.get("node")]
    server.messages.clear()
    return set(ran)


def test_calibrate_save_load_merge(server):
    server.messages.clear()
    outputs = server.run(calibration_graph("calibrations/demo"))
    (calibration,) = saved(server, "calibrations/demo")
    assert calibration.settings["seeds"] == [7, 8] and not calibration.unreached
    assert calibration.record("img_in").count == 2 * 2 * 16
    assert re.search(r"\d+ layers, up to [\d,]+ tokens", outputs["5"]["text"][0])
    told = [data for kind, data in server.messages if kind == "roundsmith.progress"]
    ended = [m for m in told if m["node"] == "5"][-1]
    assert (ended["run"], ended["runs"], ended["step"], ended["steps"]) == (2, 2, 2, 2)
    (result,) = outputs["5"]["roundsmith"]
    assert result["facts"]["layers"] == len(calibration.layers)
    assert result["facts"]["passes"] == 1 and result["facts"]["slowdown"] > 1
    bars = [d["nodes"]["5"] for k, d in server.messages
            if k == "progress_state" and "5" in d["nodes"]]  # fmt: skip
    assert max(bar["max"] for bar in bars) == 4, "one bar over both runs"
    server.run(calibration_graph("calibrations/demo", seed=9))
    prompt = {
        "1": ours("LoadCalibration", calibration="output/demo_00001_.safetensors"),
        "2": ours("LoadCalibration", calibration="output/demo_00002_.safetensors"),
        "3": ours("MergeCalibrations", first=["1", 0], second=["2", 0]),
        "4": ours("SaveCalibration", calibration=["3", 0], filename_prefix="calibrations/both"),
    }
    (result,) = server.run(prompt)["3"]["roundsmith"]
    assert result["facts"]["passes"] is None, "each of the runs has its own"
    (both,) = saved(server, "calibrations/both")
    assert both.record("img_in").count == 2 * calibration.record("img_in").count
    prompt["3"]["inputs"]["second"] = ["1", 0]
    with pytest.raises(PromptError, match="hold the same run"):
        server.run(prompt)


@pytest.mark.parametrize(
    "name", ["output/../../x.safetensors", "/etc/passwd", "models/none.safetensors"]
)
def test_only_listed_calibrations_are_opened(server, name):
    prompt = {
        "1": ours("LoadCalibration", calibration=name),
        "2": ours("SaveCalibration", calibration=["1", 0], filename_prefix="calibrations/x"),
    }
    with pytest.raises(PromptError, match=r"not in list|not among"):
        server.run(prompt)


def test_capture_in_any_graph_queued_again(server):
    """Kept results count as they did; another seed replaces them; nothing comes out empty."""
    prefix = "calibrations/any"
    server.messages.clear()
    server.run(capture_graph(prefix))
    assert {"5", "10", "11"} <= executed(server)
    server.run(capture_graph(prefix))
    assert not {"5", "10", "11"} & executed(server), "all of it was kept"
    changed = capture_graph(prefix)
    changed["12"]["inputs"]["filename_prefix"] = f"{prefix}-again"
    server.run(changed)
    assert "10" not in executed(server)
    server.run(capture_graph(prefix, seed=2))
    ran = executed(server)
    assert {"10", "11"} <= ran and "5" not in ran
    first, second = saved(server, prefix)
    (again,) = saved(server, f"{prefix}-again")
    layer = "single_blocks.1.linear1"
    counts = {c.record(layer).count for c in (first, second, again)}
    assert len(counts) == 1 and counts.pop() > 0
    assert (first.record(layer).mean == again.record(layer).mean).all()
    assert (first.record(layer).mean != second.record(layer).mean).any()


def test_finish_before_the_sampler_is_explained(server):
    """``after`` hangs on the empty latent, so Finish Capture may run first."""
    graph = capture_graph("calibrations/early", seed=3, after=("4", 0), max_tokens=448)
    del graph["13"]
    with pytest.raises(PromptError, match=r"nothing was recorded.*'after'"):
        server.run(graph)


def test_capture_of_text_encoders(server):
    prefix = "calibrations/clip"
    graph = {
        "2": loaded()["2"],
        "5": ours("CaptureCLIP", clip=["2", 0], **CAPTURE),
        "6": stock("CLIPTextEncode", clip=["5", 0], text="a handwritten one"),
        "7": stock("CLIPTextEncode", clip=["5", 0], text="two of them"),
        "8": stock("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["7", 0]),
        "9": ours("FinishCapture", capture=["5", 1], after=["8", 0]),
        "10": ours("SaveCalibration", calibration=["9", 0], filename_prefix=prefix),
    }
    server.run(graph)
    graph["7"]["inputs"]["text"] = "three of them"
    server.run(graph)
    layer = "clip_l.transformer.text_model.encoder.layers.3.mlp.fc1"
    assert [c.record(layer).count for c in saved(server, prefix)] == [154, 154]


def test_cancel_leaves_nothing_and_the_next_run_is_whole(server):
    server.messages.clear()
    prompt_id = server.queue(calibration_graph("calibrations/cancelled", seeds=200))
    deadline = time.monotonic() + 120
    while not any(
        k == "roundsmith.progress" and (d.get("run") or 0) >= 2 for k, d in server.messages
    ):
        assert time.monotonic() < deadline, server.read_log()[-2000:]
        time.sleep(0.02)
    server.post("/interrupt", {})
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(prompt_id, 60)
    assert not saved(server, "calibrations/cancelled")
    server.run(calibration_graph("calibrations/cancelled", seeds=1))
    (calibration,) = saved(server, "calibrations/cancelled")
    assert calibration.record("img_in").count == 2 * 16


