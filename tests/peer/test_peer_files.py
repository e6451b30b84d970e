"""Files written by convert-to-quant 1.3.4 decode here to what its own decoders make of them.

``files/`` holds what ``make_fixtures.py`` made: a checkpoint a mode, and the peer's weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor

from roundsmith.checkpoints import Checkpoint
from roundsmith.converters import load_file
from roundsmith.converters.stored import parts_of, stored_layers
from roundsmith.layouts import get_format

FILES = Path(__file__).parent / "files"
CASES = sorted(path.stem for path in FILES.glob("*.safetensors"))
# Cases that edit another's file: its weights are theirs.
EXPECTED = {
    "edited": "int8_convrot256",
    "hybrid_mxfp8": "mxfp8",
    "legacy_fp8_cleaned": "legacy_fp8",
    "legacy_fp8_converted": "legacy_fp8",
}
# Where the peer's label names another geometry than the tensors have: case -> layer -> format.
ONE_SCALE = {
    "single_blocks.0.linear1": "float8_e4m3fn",
    "final_layer.linear": "float8_e4m3fn",
    "img_in": "float8_e4m3fn_rowwise",
}
RELABELLED = {
    "fp8_row": {"final_layer.linear": "float8_e4m3fn"},
    "fp8_block64": ONE_SCALE,
    "fp8_block3d": ONE_SCALE,
    "int8_block64": {"single_blocks.0.linear1": "int8_tensorwise"},
    "layer_config": {
        "double_blocks.0.img_attn.qkv": "float8_e4m3fn",
        "double_blocks.0.img_attn.proj": "float8_e4m3fn_blockwise",
        "single_blocks.0.linear1": "float8_e4m3fn",
        "img_in": "float8_e4m3fn_rowwise",
    },
    "legacy_int8_converted": {
        "blocks.0.tensor": "int8_tensorwise",
        "blocks.0.row": "int8_tensorwise",
        "blocks.0.column": "int8_tensorwise",
    },
}


def peer_weights(case: str) -> dict[str, torch.Tensor]:
    with np.load(FILES / f"{EXPECTED.get(case, case)}.npz") as file:
        return {layer: torch.from_numpy(file[layer]) for layer in file.files}


def test_every_case_has_weights_to_compare_with():
    assert CASES, "no fixtures"
    for case in CASES:
        assert peer_weights(case), case


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_the_peers(case):
    """A wrong scale geometry, nibble order, block order or rotation shows here in float32."""
    expected = peer_weights(case)
    with Checkpoint.open(FILES / f"{case}.safetensors") as source:
        layers = stored_layers(source).layers
        assert set(layers) == set(expected)
        for name, layer in layers.items():
            decoded = layer.format.decode(parts_of(source, layer), layer.conf)
            # ConvRot sums a group's products, in another order than the peer's.
            slack = 3e-6 * expected[name].abs().max().item() if layer.conf.get("convrot") else 0
            torch.testing.assert_close(
                decoded, expected[name], rtol=2e-7, atol=slack, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", CASES)
def test_loaded_tensors_run_as_the_peers_weights(case):
    """``load_file`` gives each layer the right layout, shape and dtype, and it multiplies."""
    tensors = load_file(FILES / f"{case}.safetensors")
    expected = peer_weights(case)
    quantized = {name for name, tensor in tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert quantized == {f"{layer}.weight" for layer in expected}
    for layer, reference in expected.items():
        weight = tensors[f"{layer}.weight"]
        assert weight.shape == reference.shape, layer
        assert weight.dtype == torch.bfloat16, layer
        # bfloat16 arithmetic: half a unit of the code or scale, half of the product's.
        torch.testing.assert_close(
            weight.dequantize(), reference.bfloat16(), rtol=2**-6, atol=_rotation_slack(reference)
        )
        x = torch.randn(3, reference.shape[1], generator=torch.Generator().manual_seed(0))
        out = torch.nn.functional.linear(x.bfloat16(), weight).float()
        exact = x @ reference.T
        # INT8 layouts quantize the activations too: up to about 1 % of the output.
        assert (out - exact).norm() <= 0.03 * exact.norm() + 1e-30, layer


def _rotation_slack(reference: torch.Tensor) -> float:
    """Cancellation in a rotation done in bfloat16, in units of the largest weight."""
    return 2**-8 * reference.abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_shapes_decide_where_labels_are_wrong(case):
    """The peer labels a layer by what was asked, also where it did something else."""
    with Checkpoint.open(FILES / f"{case}.safetensors") as source:
        found = stored_layers(source)
    wrong = RELABELLED.get(case, {})
    for name, fmt in wrong.items():
        assert found.layers[name].format.id == fmt
        assert found.layers[name].conf["format"] == fmt
        assert any(name in note and fmt in note for note in found.notes), name
    labels = [note for note in found.notes if "labelled" in note]
    assert len(labels) == len(wrong), labels


def test_a_scale_group_within_rows_is_read_from_the_shape():
    """A legacy INT8 conversion labels lodewise scales block 1; ``[64, 2]`` on 64x128 is 64."""
    weight = load_file(FILES / "legacy_int8_converted.safetensors")["blocks.0.lode.weight"]
    assert "Lode" in weight._layout_cls


def test_nothing_is_lost_when_the_header_says_less():
    """``--edit-quant`` writes a header without the rotation, which the layer's tensor has."""
    with Checkpoint.open(FILES / "edited.safetensors") as source:
        conf = stored_layers(source).layers["double_blocks.0.img_mlp.2"].conf
    assert conf["convrot"] is True
    assert conf["convrot_groupsize"] == 256
    assert conf["note"] == "edited"


def test_only_one_element_input_scales_are_kept_as_such():
    """A T5's ``input_scale`` copies the weight's: a row of them is no scale of activations."""
    scalar = load_file(FILES / "t5_fp8_tensor.safetensors")
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    assert scalar[f"{layer}.input_scale"].shape == ()
    assert "decoder.block.0.layer.0.SelfAttention.q.weight" not in scalar


def test_legacy_marker_means_full_precision_products():
    """A two-element ``scaled_fp8`` marker says: decode, then multiply; dummy scales are dropped."""
    with Checkpoint.open(FILES / "legacy_fp8_cleaned.safetensors") as source:
        layers = stored_layers(source).layers
        assert all(layer.conf["full_precision_matrix_mult"] for layer in layers.values())
    with Checkpoint.open(FILES / "legacy_fp8.safetensors") as source:
        layers = stored_layers(source).layers
        assert not any("full_precision_matrix_mult" in layer.conf for layer in layers.values())
    tensors = load_file(FILES / "legacy_fp8.safetensors")
    assert tensors["blocks.0.kept.weight"].dtype == torch.bfloat16
    assert not [name for name in tensors if "scale_weight" in name or name == "scaled_fp8"]


def test_a_hybrid_layer_gives_back_what_the_file_holds():
    """It runs as FP8 under the peer's scalar, the largest block scale, where there is no MXFP8."""
    path, fmt = FILES / "hybrid_mxfp8.safetensors", get_format("hybrid_mxfp8")
    loaded = load_file(path)
    with Checkpoint.open(path) as source:
        layers = stored_layers(source).layers
        assert len(layers) == 5
        for name, layer in layers.items():
            assert layer.format is fmt
            weight = loaded[f"{name}.weight"]
            for suffix, tensor in fmt.parts_of(weight).items():
                stored = source.read(f"{name}.{suffix}")
                assert stored.dtype == tensor.dtype
                same = (t.reshape(-1).view(torch.uint8) for t in (stored, tensor))
                assert torch.equal(*same), suffix
