"""Sources that are quantized already: comfy_quant, legacy fp8_scaled and INT8, bare scales."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from roundsmith import Recipe, load_file, quantize_file
from roundsmith.converters import MemorySource, ModelView

from ..contract import snr, weights


def fp8(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = w.abs().amax() / 448
    return (w / scale).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("marker", [0, 1, 2])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_legacy_fp8_scaled(marker: int, prefix: str, tmp_path: Path) -> None:
    w = weights("random")
    codes, scale = fp8(w)
    tensors = {
        f"{prefix}scaled_fp8": torch.empty(marker, dtype=torch.float8_e4m3fn),
        f"{prefix}blocks.0.fc.weight": codes,
        f"{prefix}blocks.0.fc.scale_weight": scale,
        f"{prefix}blocks.0.fc.scale_input": torch.tensor(0.5),
        f"{prefix}blocks.0.out.weight": w.bfloat16(),
        f"{prefix}blocks.0.out.scale_weight": torch.ones(1),  # a dummy: the weight is bfloat16
    }
    save_file(tensors, tmp_path / "legacy.safetensors")
    view = ModelView(MemorySource(tensors))
    assert view.names == [f"{prefix}blocks.0.fc.weight", f"{prefix}blocks.0.out.weight"]
    layer = view.stored[f"{prefix}blocks.0.fc"]
    assert layer.format.id == "float8_e4m3fn"
    assert layer.conf.get("full_precision_matrix_mult", False) is (marker == 2)
    assert any("1 high-precision layers carry scales" in note for note in view.notes)

    loaded = load_file(tmp_path / "legacy.safetensors", dtype=torch.float32)
    assert torch.equal(loaded[f"{prefix}blocks.0.fc.weight"].dequantize(), codes.float() * scale)
    assert loaded[f"{prefix}blocks.0.fc.input_scale"] == 0.5
    assert torch.equal(loaded[f"{prefix}blocks.0.out.weight"], w.bfloat16())

    out = tmp_path / "out.safetensors"
    report = quantize_file(tmp_path / "legacy.safetensors", out, Recipe(format="int8", preset=None))
    assert report.quantized == 2
    after = load_file(out, dtype=torch.float32)
    assert not [name for name in after if "scaled_fp8" in name or "scale_weight" in name]
    assert snr(codes.float() * scale, after[f"{prefix}blocks.0.fc.weight"].dequantize()) > 40


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), "int8_tensorwise"),
        ((1,), "int8_tensorwise"),
        ((256,), "int8_tensorwise"),
        ((256, 1), "int8_tensorwise"),
        ((2, 2), "int8_blockwise"),
        ((256, 2), "int8_lodewise"),
    ],
)
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_int8_without_json_is_known_by_its_scales(
    shape: tuple[int, ...], expected: str, name: str
) -> None:
    tensors = {
        "fc.weight": torch.randint(-127, 128, (256, 256), dtype=torch.int8),
        f"fc.{name}": torch.rand(shape),
    }
    assert ModelView(MemorySource(tensors)).stored["fc"].format.id == expected


def test_plain_fp8_weights_are_values_as_they_stand(tmp_path: Path) -> None:
    codes = weights("random").to(torch.float8_e4m3fn)
    save_file({"fc.weight": codes}, tmp_path / "plain.safetensors")
    out = tmp_path / "out.safetensors"
    quantize_file(tmp_path / "plain.safetensors", out, Recipe(format="int8", preset=None))
    after = load_file(out, dtype=torch.float32)["fc.weight"]
    assert snr(codes.float(), after.dequantize()) > 40


def test_input_scales_are_no_tensors_of_the_model() -> None:
    from roundsmith.checkpoints import encode_conf

    codes, scale = fp8(weights("random"))
    tensors = {
        "fc.weight": codes,
        "fc.bias": torch.zeros(256),
        "fc.weight_scale": scale,
        "fc.input_scale": torch.ones(()),
        "fc.comfy_quant": encode_conf({"format": "float8_e4m3fn"}),
    }
    view = ModelView(MemorySource(tensors))
    assert view.names == ["fc.weight", "fc.bias"]
    assert view.nbytes("fc.weight") == 256 * 256 + 4 + 4


def test_a_relabelled_layer_gets_the_block_size_its_shapes_tell(tmp_path: Path) -> None:
    from roundsmith.checkpoints import encode_conf

    for scale, expected in (((256, 4), {"format": "int8_lodewise", "group_size": 64}),
                            ((256, 1), {"format": "int8_tensorwise"})):  # fmt: skip
        tensors = {
            "fc.weight": torch.zeros(256, 256, dtype=torch.int8),
            "fc.weight_scale": torch.ones(scale),
            "fc.comfy_quant": encode_conf({"format": "int8_blockwise", "group_size": 1}),
        }
        assert ModelView(MemorySource(tensors)).stored["fc"].conf == expected
