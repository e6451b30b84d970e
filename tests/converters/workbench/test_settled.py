"""Files that are plainly in order are edited without formats, and without torch."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from roundsmith import Recipe, dev, quantize_file
from roundsmith.checkpoints import Checkpoint, encode_conf, read_layers
from roundsmith.converters.editing.scalars import normalise_scales
from roundsmith.converters.parts import settled
from roundsmith.converters.patching import Patch
from roundsmith.converters.stored import stored_layers
from roundsmith.errors import RoundsmithError
from roundsmith.layouts import formats

from .files import CASES, contents, peer

PROGRAM = """
import sys
from roundsmith.cli import main
status = main(sys.argv[1:])
print(sorted({"torch", "numpy", "matplotlib"} & set(sys.modules)))
sys.exit(status)
"""


def is_settled(path) -> bool:
    """Whether a file counts as settled; checks that formats would do nothing to it then."""
    with Checkpoint.open(path) as source:
        described = read_layers(source).layers
        if not settled(source, described):
            return False
        found = stored_layers(source)
        assert {*found.layers} <= {*described}
        patch = Patch(source)
        normalise_scales(patch, found.layers)
        assert patch.changes() == ()
        return True


def test_formats_change_nothing_in_a_settled_file_of_the_peer():
    assert sum(is_settled(peer(case)) for case in CASES) >= 8


@pytest.mark.parametrize("name", formats())
def test_formats_change_nothing_in_a_settled_file_of_ours(name, tmp_path):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    shapes = ((128, 256), (256, 256), (1, 256), (128, 64))
    torch.manual_seed(0)
    save_file({f"blocks.{i}.fc.weight": torch.randn(s) for i, s in enumerate(shapes)}, source)
    quantize_file(source, out, Recipe(format=name, preset=None))
    common = ("float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4")
    assert is_settled(out) or name not in common


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize(
    "scale",
    [(), (1,), (1, 1), (32,), (32, 1), (1, 32), (32, 32), (2, 2), (1, 2), (2, 1), (32, 2, 1)],
)
@pytest.mark.parametrize("rows", [32, 1])
def test_any_shape_of_scales(dtype, scale, rows, tmp_path):
    path = tmp_path / "model.safetensors"
    ids = {torch.int8: "int8_tensorwise", torch.float8_e5m2: "float8_e5m2"}
    tensors = {
        "a.weight": torch.zeros(rows, 32).to(dtype),
        "a.weight_scale": torch.ones(scale),
        "a.comfy_quant": encode_conf({"format": ids.get(dtype, "float8_e4m3fn")}),
    }
    save_file(tensors, path)
    with suppress(RoundsmithError):  # formats cannot read it, and would be given up
        is_settled(path)


@pytest.mark.parametrize("name", ["a.scale_weight", "a.weight_scale", "scaled_fp8", "b.weight"])
def test_a_layer_without_json_is_left_to_the_formats(name, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a.weight": torch.zeros(32, 32), name: torch.ones(1).to(torch.float8_e4m3fn)}
    save_file(tensors, path)
    assert not is_settled(path)


def test_the_command_edits_without_torch(tmp_path):
    out = tmp_path / "out.safetensors"
    words = ["edit", peer("fp8_tensor"), out, "--set", "full_precision_matrix_mult=true"]
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=dev.ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    weights = {k: v for k, v in contents(out).items() if not k.endswith("comfy_quant")}
    assert weights == {
        k: v for k, v in contents(peer("fp8_tensor")).items() if not k.endswith("comfy_quant")
    }
    with Checkpoint.open(out) as source:
        layers = read_layers(source).layers
    assert layers and all(conf["full_precision_matrix_mult"] is True for conf in layers.values())
