"""The nodes that change and inspect files, run on ComfyUI's folders."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from roundsmith.bridge import file_tools, scale_files
from roundsmith.converters.inspecting import inspect_file
from roundsmith.errors import CheckpointError, DestinationExistsError, RecipeError
from roundsmith.nodes.convert_legacy import ConvertLegacy
from roundsmith.nodes.edit_metadata import EditMetadata
from roundsmith.nodes.export_input_scales import ExportInputScales
from roundsmith.nodes.extract_error_lora_file import ExtractErrorLoraFile
from roundsmith.nodes.inspect_file import InspectFile
from roundsmith.nodes.make_hybrid import MakeHybrid
from roundsmith.nodes.set_input_scales import SetInputScales

from .support import load_ours, load_stock, lora, sample

NOTHING = {"write": "nothing"}


@pytest.fixture
def fp8(quantized):
    """The demo in FP8, as the nodes name it."""
    return f"diffusion_models/{quantized('float8_e4m3fn').name}"


def destination(name, **changes):
    return {"write": "new file", "folder": "output", "filename": name, **changes}


def codes(path):
    return {
        name: tensor.contiguous().view(torch.uint8)
        for name, tensor in load_file(path).items()
        if name.endswith(".weight")
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_edit_shows_writes_and_is_done(base, fp8, quantized):
    path, report, text = EditMetadata.execute(
        fp8, layers="single", set="full_precision_matrix_mult = true", **NOTHING
    ).args
    assert path == "" and "full_precision_matrix_mult" in report
    changes = json.loads(text)["changes"]
    assert changes and all(x["after"] is True for x in changes)
    settings = {"layers": "single", "set": "'full_precision_matrix_mult': True"}
    path, _, text = EditMetadata.execute(fp8, **settings, **destination("edited")).args
    assert path == str(base / "output" / "edited.safetensors")
    assert json.loads(text)["changes"] == changes
    assert same(codes(path), codes(quantized("float8_e4m3fn")))
    conf = {x.name: x.conf for x in inspect_file(path).layers}
    assert conf["single_blocks.0.linear1"]["full_precision_matrix_mult"] is True
    assert "full_precision_matrix_mult" not in conf["double_blocks.0.img_attn.qkv"]
    with pytest.raises(DestinationExistsError):
        EditMetadata.execute(fp8, **settings, **destination("edited"))
    model = load_stock(path)
    assert model.model.diffusion_model.single_blocks[0].linear1._full_precision_mm


def test_edit_in_place_changes_the_file_once(base, quantized):
    copy = base / "models" / "diffusion_models" / "mine.safetensors"
    copy.write_bytes(quantized("int8_tensorwise").read_bytes())
    choice = f"diffusion_models/{copy.name}"
    try:
        before = codes(copy)
        EditMetadata.execute(choice, set="note = mine", write="in place")
        assert same(codes(copy), before)
        state = copy.stat()
        text = EditMetadata.execute(choice, set="note = mine", write="in place").args[2]
        assert json.loads(text)["changes"] == []
        assert (copy.stat().st_mtime_ns, copy.stat().st_ino) == (state.st_mtime_ns, state.st_ino)
    finally:
        copy.unlink()


def test_in_place_does_not_follow_a_link(base, tmp_path, quantized):
    target = tmp_path / "elsewhere.safetensors"
    target.write_bytes(quantized("float8_e4m3fn").read_bytes())
    before = target.read_bytes()
    link = base / "models" / "diffusion_models" / "linked.safetensors"
    link.symlink_to(target)
    try:
        with pytest.raises(CheckpointError, match="leads outside"):
            EditMetadata.execute("diffusion_models/linked.safetensors", set="a=1", write="in place")
    finally:
        link.unlink()
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "C:\\evil"])
def test_a_destination_outside_is_refused(base, fp8, name):
    with pytest.raises(CheckpointError, match="refused"):
        EditMetadata.execute(fp8, set="a=1", **destination(name))
    with pytest.raises(CheckpointError, match="not among"):
        EditMetadata.execute("diffusion_models/../../x.safetensors", **NOTHING)


def test_a_legacy_file_becomes_one_that_stock_samples_with(base, fp8, quantized):
    """To the older layout and back: the same picture, to the last bit, in stock ComfyUI."""
    old = ConvertLegacy.execute(
        fp8, to="fp8_scaled", full_precision_matmul="off", **destination("old")
    ).args[0]
    tensors = load_file(old)
    assert tensors["scaled_fp8"].numel() == 0
    assert "single_blocks.0.linear1.scale_weight" in tensors
    assert not [name for name in tensors if "comfy_quant" in name]
    copy = base / "models" / "diffusion_models" / "old.safetensors"
    copy.write_bytes((base / "output" / "old.safetensors").read_bytes())
    try:
        path, report, _ = ConvertLegacy.execute(
            "diffusion_models/old.safetensors", **destination("new")
        ).args
        assert "legacy fp8_scaled" in report
        assert same(codes(path), codes(quantized("float8_e4m3fn")))
        expected = sample(load_stock(quantized("float8_e4m3fn")))
        assert torch.equal(sample(load_stock(path)), expected)
        assert torch.equal(sample(load_stock(copy)), expected)
        assert torch.equal(sample(load_ours(path)), expected)
        with pytest.raises(CheckpointError, match="hp_filter"):
            ConvertLegacy.execute(
                "diffusion_models/old.safetensors", hp_filter="linear1", **NOTHING
            )
    finally:
        copy.unlink()


def test_input_scales_out_and_in_again(base, fp8):
    first = SetInputScales.execute(
        fp8, {"scales": "constant", "value": 0.25}, layers="single", **destination("scaled")
    ).args
    assert float(load_file(first[0])["single_blocks.0.linear1.input_scale"]) == 0.25
    copy = base / "models" / "diffusion_models" / "scaled.safetensors"
    copy.write_bytes((base / "output" / "scaled.safetensors").read_bytes())
    try:
        path, text = ExportInputScales.execute(
            "diffusion_models/scaled.safetensors", "", "input-scales/scales"
        ).args
        choice = f"output/input-scales/{path.rsplit('/', 1)[1]}"
        assert choice in scale_files.list_scale_files()
        assert set(json.loads(text).values()) == {0.25}
        sources = (
            {"scales": "file", "file": choice},
            {"scales": "file", "file": "diffusion_models/scaled.safetensors"},
            {"scales": "json", "text": text},
        )
        for index, scales in enumerate(sources):
            again = SetInputScales.execute(fp8, scales, **destination(f"again-{index}")).args[0]
            assert same(codes(again), codes(first[0]))
            one, other = load_file(again), load_file(first[0])
            assert same({k: v for k, v in one.items() if "input_scale" in k},
                        {k: v for k, v in other.items() if "input_scale" in k})  # fmt: skip
        with pytest.raises(CheckpointError, match="not among"):
            SetInputScales.execute(fp8, {"scales": "file", "file": "input/../x.json"}, **NOTHING)
    finally:
        copy.unlink()


def test_calibrated_scales_need_a_calibration(fp8):
    with pytest.raises(RecipeError, match="connect"):
        SetInputScales.execute(fp8, {"scales": "calibrated", "percentile": 99.9}, **NOTHING)


def test_measured_scales(base, demo, fp8):
    from roundsmith.converters.calibration import capture

    model = load_stock(demo)
    with capture(model.model.diffusion_model) as calibration:
        sample(model)
    path, report, _ = SetInputScales.execute(
        fp8, {"scales": "calibrated", "percentile": 100.0}, calibration=calibration,
        **destination("measured"),
    ).args  # fmt: skip
    scale = load_file(path)["single_blocks.0.linear1.input_scale"]
    record = calibration.record("single_blocks.0.linear1")
    assert float(scale) == pytest.approx(float(record.absmax.max()) / 448)
    assert "single_blocks.0.linear1" in report


def test_estimated_scales(base, fp8):
    """From nothing, and from a LoRA: never without saying that they are no measurements."""
    layer = "single_blocks.0.linear1"
    save_file(lora(), base / "models" / "loras" / "directions.safetensors")
    settings = {"samples": 32, "percentile": 100.0}
    found = {}
    for kind, more in (("random", {}), ("lora", {"lora": "directions.safetensors"})):
        for seed in (0, 1):
            scales = {"scales": kind, "seed": seed, **settings, **more}
            path, report, text = SetInputScales.execute(
                fp8, scales, layers=layer, **destination(f"{kind}-{seed}")
            ).args
            assert "warning: input scales are estimates: no measured activations" in report
            assert json.loads(text)["mode"] == kind
            found[kind, seed] = float(load_file(path)[f"{layer}.input_scale"])
    assert len(set(found.values())) == 4
    assert all(2 / 448 < scale < 8 / 448 for scale in found.values()), "of Gaussian inputs"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "no.safetensors", "a.txt", ""])
def test_only_comfyuis_loras_are_read(base, fp8, name):
    (base / "models" / "loras" / "a.txt").write_text("no LoRA", encoding="utf-8")
    scales = {"scales": "lora", "lora": name, "samples": 8, "percentile": 99.9, "seed": 0}
    with pytest.raises(CheckpointError, match="not among"):
        SetInputScales.execute(fp8, scales, **NOTHING)


def test_inspect_draws_and_scores(base, fp8, demo):
    result = InspectFile.execute(fp8, original=f"diffusion_models/{demo.name}")
    table, text, chart = result.args
    assert "stock ComfyUI or Roundsmith" in table and "SNR, dB" in table
    found = json.loads(text)
    assert found["stock"] and found["reference"].endswith(demo.name)
    assert all(x["snr"] > 25 for x in found["layers"] if x["conf"])
    assert chart.ndim == 4 and chart.shape[-1] == 3 and chart.std() > 0.05
    assert result.ui["images"] and result.ui["text"]


def test_inspect_runs_again_when_the_file_changes(base, fp8, quantized):
    one = InspectFile.fingerprint_inputs(fp8)
    assert one and one == InspectFile.fingerprint_inputs(fp8, deep=True)
    assert InspectFile.fingerprint_inputs("diffusion_models/none.safetensors").strip() == ""
    state = quantized("float8_e4m3fn").stat()
    assert str(state.st_size) in one


def test_an_error_lora_from_files(base, demo, quantized):
    name = quantized("nvfp4").name
    path, report = ExtractErrorLoraFile.execute(
        f"diffusion_models/{demo.name}", f"diffusion_models/{name}", 8, "loras/from-files",
        target="single_blocks.0",
    ).args  # fmt: skip
    lora = load_file(path)
    assert lora["diffusion_model.single_blocks.0.linear1.lora_A.weight"].shape[0] == 8
    assert "single_blocks.0.linear1" in report


def test_an_error_lora_of_the_first_blocks(base, demo, quantized):
    files = [f"diffusion_models/{path.name}" for path in (demo, quantized("nvfp4"))]
    made = {}
    for index, chosen in enumerate(({}, {"depth": 2}, {"depth": 2, "aspect": 1.0})):
        path, _ = ExtractErrorLoraFile.execute(
            *files, 4, f"loras/blocks-{index}", layers="selected", **chosen
        ).args
        names = {name.rpartition(".lora_")[0] for name in load_file(path)}
        made[index] = {name.removeprefix("diffusion_model.") for name in names}
    assert made[0] and not any("blocks.1." in name for name in made[0])
    assert made[0] < made[1] and any("blocks.1." in name for name in made[1])
    assert made[2] == {name for name in made[1] if name.endswith("attn.proj")}


def test_a_cancelled_run_leaves_nothing(base, fp8, monkeypatch):
    import comfy.model_management as mm

    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 3

    monkeypatch.setattr(file_tools, "cancelled", stop)
    mm.interrupt_current_processing(False)
    with pytest.raises(Exception, match="cancelled"):
        EditMetadata.execute(fp8, set="a = 1", **destination("half"))
    assert not [p for p in (base / "output").iterdir() if "half" in p.name]


def test_a_file_of_another_kind_is_named(base, demo):
    path = base / "models" / "diffusion_models" / "plain.safetensors"
    save_file({"a.weight": torch.zeros(4, 4)}, path)
    try:
        choice = "diffusion_models/plain.safetensors"
        for node in (EditMetadata, ConvertLegacy):
            with pytest.raises(CheckpointError, match=r"plain\.safetensors has no quantized"):
                node.execute(choice, **NOTHING)
        with pytest.raises(CheckpointError, match="no input scales"):
            ExportInputScales.execute(choice, "", "input-scales/x")
    finally:
        path.unlink()


def test_an_mxfp8_file_made_hybrid_samples(base, quantized):
    """As one that was quantized to hybrid at once, to the last bit."""
    choice = f"diffusion_models/{quantized('mxfp8').name}"
    path, report, _ = MakeHybrid.execute(
        choice, {"scalar": "largest"}, **destination("hybrid")
    ).args
    assert "weight_scalar" in report and same(codes(path), codes(quantized("mxfp8")))
    expected = sample(load_ours(quantized("hybrid_mxfp8")))
    assert torch.equal(sample(load_ours(path)), expected)
    scales = {"scalar": "import", "file": f"diffusion_models/{quantized('float8_e4m3fn').name}"}
    path = MakeHybrid.execute(choice, scales, **destination("hybrid-imported")).args[0]
    wanted = load_file(quantized("float8_e4m3fn"))["single_blocks.0.linear1.weight_scale"]
    assert torch.equal(load_file(path)["single_blocks.0.linear1.weight_scalar"], wanted)


def test_scales_as_text_are_no_path(base):
    """A workflow cannot name a file of the machine where an object of scales is wanted."""
    from roundsmith.nodes.set_input_scales import _options

    with pytest.raises(RecipeError, match="an object like"):
        _options({"scales": "text", "text": '"/somewhere/else.json"'}, None)
