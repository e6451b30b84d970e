"""What a file says of its quantized layers, in the header, in tensors, in both, and in error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from roundsmith.checkpoints import (
    Checkpoint,
    QuantizedLayers,
    decode_conf,
    encode_conf,
    layers_metadata,
    read_layers,
)
from roundsmith.errors import CheckpointError

KEY = "_quantization_metadata"
BLOCKS: dict[str, Any] = {"format": "int8_blockwise", "group_size": 128}


def weights(*layers: str) -> dict[str, torch.Tensor]:
    return {f"{layer}.weight": torch.zeros(2, 2, dtype=torch.int8) for layer in layers}


def read(folder: Path, state: dict[str, torch.Tensor], header: Any = None) -> QuantizedLayers:
    text = header if header is None or isinstance(header, str) else layers_metadata(header)
    path = folder / "model.safetensors"
    save_file(state, path, metadata=None if text is None else {KEY: text})
    with Checkpoint.open(path) as checkpoint:
        return read_layers(checkpoint)


def test_a_plain_file_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, weights("a")) == QuantizedLayers({}, [])


def test_the_header_alone(tmp_path: Path) -> None:
    layers = {"a": BLOCKS, "model.diffusion_model.b": {"format": "nvfp4"}}
    assert read(tmp_path, weights(*layers), layers) == QuantizedLayers(layers, [])


def test_tensors_alone(tmp_path: Path) -> None:
    state = weights("a") | {"a.comfy_quant": encode_conf(BLOCKS)}
    assert read(tmp_path, state) == QuantizedLayers({"a": BLOCKS}, [])


def test_both_equal(tmp_path: Path) -> None:
    state = weights("a") | {"a.comfy_quant": encode_conf(dict(reversed(BLOCKS.items())))}
    assert read(tmp_path, state, {"a": BLOCKS}) == QuantizedLayers({"a": BLOCKS}, [])


def test_both_different(tmp_path: Path) -> None:
    stored = {"format": "int8_blockwise", "group_size": 64, "orig_dtype": "torch.bfloat16"}
    state = weights("a", "b") | {"a.comfy_quant": encode_conf(stored)}
    state["b.comfy_quant"] = encode_conf(BLOCKS)
    result = read(tmp_path, state, {"a": {**BLOCKS, "full_precision_matrix_mult": True}})
    assert result.layers == {
        "a": {**BLOCKS, "full_precision_matrix_mult": True, "orig_dtype": "torch.bfloat16"},
        "b": BLOCKS,
    }
    assert result.notes == [
        "a: group_size is 128 in the header, which is used, and 64 in comfy_quant; "
        "full_precision_matrix_mult is only in the header, True; "
        "orig_dtype is only in comfy_quant, 'torch.bfloat16'"
    ]


def test_nested_params_are_flattened_and_noted(tmp_path: Path) -> None:
    nested = {"format": "int8_blockwise", "params": {"group_size": 128, "format": "wrong"}}
    state = weights("a", "b") | {"a.comfy_quant": encode_conf(nested)}
    result = read(tmp_path, state, {"a": BLOCKS, "b": nested})
    assert result.layers == {"a": BLOCKS, "b": BLOCKS}
    assert [note[:2] for note in result.notes] == ["a:", "b:"]
    assert all("'params'" in note for note in result.notes)


def test_a_layer_without_its_weight_is_noted_and_left_out(tmp_path: Path) -> None:
    state = weights("a") | {"gone.comfy_quant": encode_conf(BLOCKS)}
    result = read(tmp_path, state, {"a": BLOCKS, "lost": BLOCKS})
    assert result.layers == {"a": BLOCKS}
    assert [note.split(":")[0] for note in result.notes] == ["lost", "gone"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("{'layers': {}}", "is not valid JSON"),
        ("[]", "object of layers"),
        ('{"layers": []}', "object of layers"),
        ('{"layers": {"a": "nvfp4"}}', "of layer 'a' is not an object"),
    ],
)
def test_broken_header_metadata_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: its {KEY} .*{message}.*;"):
        read(tmp_path, weights("a"), text)


@pytest.mark.parametrize("content", [{}, {"format_version": "2.0", "layers": {"a": BLOCKS}}])
def test_an_unusual_header_is_noted(tmp_path: Path, content: dict[str, Any]) -> None:
    result = read(tmp_path, weights("a"), json.dumps(content))
    assert result.layers == content.get("layers", {})
    assert len(result.notes) == 1


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.frombuffer(bytearray(b"{'format': 'nvfp4'}"), dtype=torch.uint8), "valid JSON"),
        (torch.frombuffer(bytearray(b"\xff\xfe"), dtype=torch.uint8), "valid JSON"),
        (torch.empty(0, dtype=torch.uint8), "valid JSON"),
        (torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8), "list where an object"),
        (torch.zeros(3), "F32 where JSON text"),
    ],
)
def test_a_broken_comfy_quant_tensor_is_named(
    tmp_path: Path, tensor: torch.Tensor, message: str
) -> None:
    state = weights("deep.layer") | {"deep.layer.comfy_quant": tensor}
    pattern = rf"model\.safetensors: tensor 'deep\.layer\.comfy_quant'.*{message}"
    with pytest.raises(CheckpointError, match=pattern):
        read(tmp_path, state)


def test_the_written_forms_are_those_of_the_format() -> None:
    assert bytes(encode_conf(BLOCKS).tolist()) == json.dumps(BLOCKS).encode()
    assert encode_conf(BLOCKS).dtype == torch.uint8
    assert decode_conf(encode_conf({"name": "é"})) == {"name": "é"}
    assert json.loads(layers_metadata({"a": BLOCKS})) == {
        "format_version": "1.0",
        "layers": {"a": BLOCKS},
    }


def test_shards_put_their_layers_together(tmp_path: Path) -> None:
    places: dict[str, str] = {}
    for number, layers in enumerate([{"a": BLOCKS}, {"b": BLOCKS, "a": {"format": "nvfp4"}}]):
        name = f"part{number}.safetensors"
        state = weights("ab"[number])
        metadata = {KEY: layers_metadata(layers), "number": str(number)}
        save_file(state, tmp_path / name, metadata=metadata)
        places |= dict.fromkeys(state, name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with Checkpoint.open(index) as checkpoint:
        assert read_layers(checkpoint).layers == {"a": BLOCKS, "b": BLOCKS}
        assert checkpoint.metadata["number"] == "0"
        assert len(checkpoint.notes) == 2
