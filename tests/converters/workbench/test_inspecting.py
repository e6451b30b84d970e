"""Inspection: numbers that are right, suspicions that are found and not invented, a chart."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from roundsmith import Recipe, quantize_file
from roundsmith.checkpoints import encode_conf
from roundsmith.converters.inspecting import charts, inspect_file
from roundsmith.converters.inspecting.codes import spacing
from roundsmith.layouts import formats
from roundsmith.layouts.grids import E2M1, E4M3, INT8, CodebookGrid

from .files import CASES, legacy, peer, save

SOUND = [c for c in CASES if c != "nvfp4_learned"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index in range(3):
        spread = torch.exp(0.4 * torch.randn(512, 1, generator=generator))
        weight = torch.randn(512, 256, generator=generator) * spread
        tensors[f"blocks.{index}.fc.weight"] = weight.bfloat16()
    tensors["head.weight"] = torch.randn(64, 256, generator=generator).bfloat16()
    return save(tmp_path_factory.mktemp("original") / "original.safetensors", tensors)


def quantized(original, path, **options):
    quantize_file(original, path, Recipe(preset=None, rounding="nearest", **options))
    return path


def only(layers, name):
    return next(layer for layer in layers if layer.name == name)


@pytest.mark.parametrize("name", list(formats()))
def test_numbers_of_every_format(original, tmp_path, name):
    """Scales are those that decode; the estimate is near the truth; nothing is suspicious."""
    path = quantized(original, tmp_path / "q.safetensors", format=name, exclude=("head",))
    found = inspect_file(path, deep=True)
    exact = inspect_file(path, original=original)
    assert found.suspicious == ()
    for layer in found.layers:
        if layer.name == "head":
            continue
        known = only(exact.layers, layer.name)
        assert layer.codes.seen >= 512 * 256 and layer.codes.broken == 0
        assert layer.snr == pytest.approx(known.snr, abs=2.5)
        assert layer.scales.zero == layer.scales.broken == layer.scales.negative == 0
        assert 0 < layer.scales.least <= layer.scales.largest
        assert 0 <= layer.codes.at_max < 0.3
    head = only(found.layers, "head")
    assert head.snr is None and head.scales is None and head.stored_as == "BF16"
    assert exact.reference == str(original) and found.deep


def test_scales_are_counted_without_padding(tmp_path):
    """50 x 40 in NVFP4 is stored as 64 x 48 with 128 x 4 scales, of which 50 x 3 are real."""
    source = save(tmp_path / "s.safetensors", {"a.weight": torch.rand(50, 40) + 1})
    for name, count in (("nvfp4", 50 * 3), ("mxfp8", 50 * 2)):
        path = tmp_path / f"{name}.safetensors"
        quantize_file(source, path, Recipe(format=name, preset=None))
        (layer,) = inspect_file(path).layers
        assert layer.scales.count == count and layer.scales.zero == 0, name


def test_a_sample_tells_what_all_codes_tell(original, tmp_path, monkeypatch):
    from roundsmith.converters.inspecting import codes

    monkeypatch.setattr(codes, "SAMPLE", 8 << 10)
    path = quantized(original, tmp_path / "q.safetensors", format="int8", scaling="row")
    for some, all_ in zip(inspect_file(path).layers, inspect_file(path, deep=True).layers,
                          strict=True):  # fmt: skip
        assert some.codes.seen == min(8 << 10, all_.codes.seen)
        assert some.snr == pytest.approx(all_.snr, abs=0.5)


@pytest.mark.parametrize("case", SOUND)
def test_the_peers_files(case):
    """What convert-to-quant does is named; its sound files are not slandered."""
    found = inspect_file(peer(case))
    kinds = {x.kind for x in found.suspicious}
    zeros = case in ("fp8_tensor", "fp8_tensor_no_header", "fp8_tensor_full_precision", "fp8_row",
                     "int8_row_all_zero", "mxfp8", "hybrid_mxfp8")  # fmt: skip
    assert kinds <= ({"codes", "orphan"} if zeros or "legacy" in case else set()), found.suspicious
    assert not found.why_not_roundsmith
    assert all(layer.scales for layer in found.layers if layer.conf)


def test_formats_of_roundsmith_alone_are_told_from_stock_ones(original, tmp_path):
    stock = quantized(original, tmp_path / "1.safetensors", format="float8_e4m3fn")
    assert inspect_file(stock).stock and inspect_file(stock).why_not_stock == ()
    ours = inspect_file(quantized(original, tmp_path / "2.safetensors", format="int8_lodewise"))
    assert not ours.stock
    assert ours.why_not_stock == ("4 layers (blocks.0.fc, …): int8_lodewise is Roundsmith's",)
    assert "loads with: Roundsmith's loader nodes" in ours.table()


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"a.weight_scale": torch.ones(())}, "nothing in the file says"),
        ({"a.scale_weight": torch.ones(())}, "legacy INT8"),
        (
            {
                "a.weight_scale": torch.ones(32),
                "a.comfy_quant": encode_conf({"format": "int8_tensorwise"}),
            },
            "would be taken for columns'",
        ),
        (
            {
                "a.weight_scale": torch.ones(32, 1),
                "a.comfy_quant": encode_conf({"format": "int8_blockwise"}),
            },
            "labelled 'int8_blockwise'",
        ),
    ],
)
def test_why_stock_does_not_read_a_file(tensors, why, tmp_path):
    weight = torch.randint(-100, 100, (32, 32), dtype=torch.int8)
    found = inspect_file(save(tmp_path / "a.safetensors", {"a.weight": weight, **tensors}))
    assert not found.stock and len(found.why_not_stock) == 1 and why in found.why_not_stock[0]
    assert found.why_not_stock[0] in found.table()


def test_a_legacy_fp8_file_loads_with_stock(tmp_path):
    found = inspect_file(legacy(tmp_path / "old.safetensors"))
    assert found.stock
    assert {x.entry for x in found.suspicious if x.kind == "orphan"} == {
        "blocks.0.gone.scale_weight", "blocks.0.kept.scale_weight"}  # fmt: skip


def broken(original, tmp_path, change):
    path = tmp_path / "q.safetensors"
    path.unlink(missing_ok=True)
    tensors = load_file(quantized(original, path, format="int8", scaling="row"))
    change(tensors)
    return inspect_file(save(tmp_path / "broken.safetensors", tensors))


def test_dead_and_broken_scales(original, tmp_path):
    def change(tensors):
        tensors["blocks.0.fc.weight_scale"][:5] = 0
        tensors["blocks.1.fc.weight_scale"][1:3] *= -1
        tensors["blocks.2.fc.input_scale"] = torch.tensor(1e30)

    found = {(x.kind, x.entry): x.text for x in broken(original, tmp_path, change).suspicious}
    assert found == {
        ("dead scales", "blocks.0.fc"): "5 of 512 scales are zero: so is what they multiply",
        ("scales", "blocks.1.fc"): "2 of 512 scales are negative",
        ("input scale", "blocks.2.fc"): "its input scale is 1e+30",
    }

    def change_again(tensors):
        tensors["blocks.1.fc.weight_scale"][0] = math.inf

    texts = [x.text for x in broken(original, tmp_path, change_again).suspicious]
    assert texts == ["1 of 512 scales are NaN or infinite"]


def test_saturated_zero_and_broken_codes(original, tmp_path):
    def change(tensors):
        tensors["blocks.0.fc.weight"][:, ::8] = 127
        tensors["blocks.1.fc.weight"].zero_()

    found = {x.entry: (x.kind, x.text) for x in broken(original, tmp_path, change).suspicious}
    assert found["blocks.0.fc"][0] == "saturated codes" and "12." in found["blocks.0.fc"][1]
    assert found["blocks.1.fc"] == ("codes", "all 65536 codes seen are zero")
    assert "blocks.2.fc" not in found
    weight = torch.full((64, 64), float("nan")).to(torch.float8_e4m3fn)
    tensors = {"a.weight": weight, "a.weight_scale": torch.ones(())}
    (suspicion,) = inspect_file(save(tmp_path / "nan.safetensors", tensors)).suspicious
    assert suspicion.text == "4096 of 4096 codes are NaN"


def test_orphans_and_contradictions(original, tmp_path):
    def change(tensors):
        tensors["gone.weight_scale"] = torch.ones(())
        tensors["lost.comfy_quant"] = encode_conf({"format": "mxfp8"})
        tensors["head.scale_weight"] = torch.ones(())

    found = broken(original, tmp_path, change)
    assert {(x.kind, x.entry) for x in found.suspicious} == {
        ("orphan", "gone.weight_scale"), ("orphan", "lost.comfy_quant"),
        ("orphan", "head.scale_weight")}  # fmt: skip
    noted = inspect_file(peer("edited"))
    assert any("only in comfy_quant" in note for note in noted.notes)


def test_a_layer_nothing_reads_is_named_and_the_rest_is_shown(original, tmp_path):
    def change(tensors):
        tensors["blocks.0.fc.comfy_quant"] = encode_conf({"format": "tomorrow"})

    found = broken(original, tmp_path, change)
    assert not found.stock and "tomorrow" in found.why_not_roundsmith[0]
    assert "loads with: nothing" in found.table()
    assert [x.entry for x in found.suspicious] == ["blocks.0.fc"]
    assert only(found.layers, "blocks.1.fc").scales.count == 512
    assert only(found.layers, "blocks.0.fc").stored_as == "I8"


def test_a_missing_scale_is_named(tmp_path):
    path = save(tmp_path / "a.safetensors", {
        "a.weight": torch.zeros(32, 16, dtype=torch.uint8),
        "a.weight_scale": torch.zeros(128, 4, dtype=torch.float8_e4m3fn),
        "a.comfy_quant": encode_conf({"format": "nvfp4"}),
    })  # fmt: skip
    found = inspect_file(path)
    assert found.suspicious and found.suspicious[0].entry == "a"
    assert json.loads(found.json())


def test_json_has_no_infinities_and_everything_else(original, tmp_path):
    def change(tensors):
        tensors["blocks.0.fc.weight_scale"][0] = math.inf

    found = json.loads(broken(original, tmp_path, change).json(), parse_constant=pytest.fail)
    assert {"layers", "suspicious", "why_not_stock", "formats", "recipe"} <= set(found)
    assert sum(layer["scales"]["broken"] for layer in found["layers"]) == 1


def test_how_a_file_was_made(original, tmp_path):
    path = quantized(original, tmp_path / "q.safetensors", format="nvfp4")
    assert json.loads(inspect_file(path).made["made with"])["format"] == "nvfp4"
    assert inspect_file(peer("nvfp4")).made == {}


def test_an_original_of_another_model_is_refused(original, tmp_path):
    other = save(tmp_path / "other.safetensors", {"x.weight": torch.zeros(8, 8)})
    path = quantized(original, tmp_path / "q.safetensors", format="nvfp4")
    with pytest.raises(ValueError, match="are they the same model"):
        inspect_file(path, original=other)


# ---- what a code stands for ----------------------------------------------------------------------


@pytest.mark.parametrize("grid", [E4M3, INT8, E2M1])
def test_spacing_is_the_gap_to_the_next_value(grid):
    codes = torch.arange(16 if grid is E2M1 else 256, dtype=torch.uint8)
    values = grid.decode(codes if grid is E2M1 else codes.view(grid.dtype))
    points = torch.unique(values[values.isfinite() & (values > 0)])
    points = points[points <= grid.max]
    assert len(points) == {E4M3: 126, INT8: 127, E2M1: 7}[grid]
    assert torch.equal(spacing(grid, points[:-1]), points.diff())
    assert torch.equal(spacing(grid, -points), spacing(grid, points))


def test_spacing_of_a_codebook():
    grid = CodebookGrid.of("x", (-1.0, 0.0, 0.5, 4.0))
    assert spacing(grid, torch.tensor([-1.0, 0.0, 0.5, 4.0])).tolist() == [1.0, 0.75, 2.0, 3.5]


# ---- the chart -----------------------------------------------------------------------------------


def test_blocks_are_what_names_share(original, tmp_path):
    path = quantized(original, tmp_path / "q.safetensors", format="nvfp4", exclude=("head",))
    found = inspect_file(path)
    blocks = charts.blocks_of(found.layers)
    assert [block.name for block in blocks] == ["blocks.0", "blocks.1", "blocks.2", "other"]
    first = only(found.layers, "blocks.0.fc")
    assert blocks[0].bytes == {"nvfp4": first.bytes} and blocks[3].snr is None
    assert blocks[0].snr == pytest.approx(first.snr)
    assert sum(sum(block.bytes.values()) for block in blocks) == found.bytes


def test_the_chart_draws(original, tmp_path):
    import numpy as np

    path = quantized(original, tmp_path / "q.safetensors", format="nvfp4")
    found = inspect_file(path)
    image = charts.draw(found)
    assert np.asarray(image).std() > 10 and image.mode == "RGB"
    charts.draw(inspect_file(original))  # nothing quantized
