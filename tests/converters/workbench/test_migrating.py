"""Older checkpoints: detected, converted, cleaned, written; bytes of codes never change."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from roundsmith.checkpoints import Checkpoint, encode_conf
from roundsmith.checkpoints.quantization import HEADER_KEY
from roundsmith.converters.migrating import MigrateOptions, detect, migrate_file
from roundsmith.converters.patching import Destination
from roundsmith.errors import CheckpointError, FormatError, RecipeError

from .files import CASES, codes, contents, hashed, legacy, metadata, peer, same_weights, save

FP8 = [case for case in CASES if case.startswith(("fp8", "legacy_fp8", "t5_fp8", "layer_config"))]


def migrate(path, out, **options):
    return migrate_file(path, Destination(out), MigrateOptions(**options))


def layers(path):
    return json.loads(metadata(path)[HEADER_KEY])["layers"]


def shape(path, name):
    return contents(path)[name][1]


# ---- the peer's files, every mode ----------------------------------------------------------------


@pytest.mark.parametrize("to", ["comfy_quant", "same"])
@pytest.mark.parametrize("case", CASES)
def test_the_peers_files_are_migrated_without_loss(case, to, tmp_path):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    report = migrate(peer(case), out, to=to)
    assert codes(out) == codes(peer(case))
    assert same_weights(peer(case), out)
    assert report.facts["the file is"]
    old = {k: v for k, v in metadata(peer(case)).items() if k != HEADER_KEY}
    assert {k: v for k, v in metadata(out).items() if k != HEADER_KEY} == old
    second = migrate(out, again, to=to)
    assert second.changes == () and again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("case", FP8)
def test_fp8_goes_to_the_older_layout_and_back(case, tmp_path):
    old, back = tmp_path / "old.safetensors", tmp_path / "back.safetensors"
    migrate(peer(case), old, to="fp8_scaled")
    assert codes(old) == codes(peer(case)) and same_weights(peer(case), old)
    tensors = load_file(old)
    assert "scaled_fp8" in tensors and not [x for x in tensors if x.endswith("comfy_quant")]
    assert not [x for x in tensors if x.endswith((".weight_scale", ".input_scale"))]
    assert HEADER_KEY not in metadata(old)
    assert migrate(old, tmp_path / "2.safetensors", to="fp8_scaled").changes == ()
    migrate(old, back)
    assert codes(back) == codes(peer(case)) and same_weights(peer(case), back)


@pytest.mark.parametrize("case", [c for c in CASES if c not in FP8])
def test_what_is_not_fp8_does_not_fit_the_older_layout(case, tmp_path):
    with pytest.raises(FormatError, match=r"layer '.*holds FP8 with plain scales only"):
        migrate(peer(case), tmp_path / "old.safetensors", to="fp8_scaled")
    assert list(tmp_path.iterdir()) == []


def test_wrong_labels_are_put_right(tmp_path):
    """So that stock ComfyUI reads what it can: one scale a row is int8_tensorwise."""
    out = tmp_path / "out.safetensors"
    migrate(peer("legacy_int8_converted"), out)
    found = {name: conf["format"] for name, conf in layers(out).items()}
    assert found["blocks.0.row"] == found["blocks.0.column"] == "int8_tensorwise"
    assert found["blocks.0.block"] == "int8_blockwise" and found["blocks.0.lode"] == "int8_lodewise"
    assert shape(out, "blocks.0.row.weight_scale") == (32, 1)
    assert float(load_file(out)["blocks.0.block.input_scale"]) == 1.0, "such files carry one"


# ---- what a file is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("legacy_fp8", "legacy fp8_scaled"),
        ("fp8_tensor", "comfy_quant"),
        ("int8_block64", "comfy_quant"),
    ],
)
def test_what_a_file_is(case, kind):
    with Checkpoint.open(peer(case)) as source:
        assert detect(source).kind == kind


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"a.weight": torch.zeros(4, 4)}, "not quantized"),
        ({"a.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)}, "plain FP8"),
        (
            {"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.scale_weight": torch.ones(())},
            "legacy INT8",
        ),
        (
            {"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.weight_scale": torch.ones(4)},
            "INT8 with scales, no settings",
        ),
        (
            {
                "a.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
                "a.scale_weight": torch.ones(()),
                "b.weight": torch.zeros(4, 4, dtype=torch.int8),
                "b.weight_scale": torch.ones(()),
                "b.comfy_quant": encode_conf({"format": "int8_tensorwise"}),
            },
            "legacy fp8_scaled + comfy_quant",
        ),
    ],
)
def test_small_files_are_told_apart(tensors, kind, tmp_path):
    with Checkpoint.open(save(tmp_path / "a.safetensors", tensors)) as source:
        assert detect(source).kind == kind


def test_facts_are_shown(tmp_path):
    report = migrate_file(legacy(tmp_path / "old.safetensors", marker=2), Destination(dry_run=True))
    text = report.table()
    assert "the file is: legacy fp8_scaled" in text and "2 × float8_e4m3fn" in text
    assert "2 elements: full-precision products" in text and "input scales: 1" in text
    assert json.loads(report.json())["facts"]["the file is"] == "legacy fp8_scaled"


# ---- into comfy_quant ----------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [None, 0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_legacy_file(tmp_path, marker, dtype):
    path = legacy(tmp_path / "old.safetensors", dtype, marker)
    out = tmp_path / "out.safetensors"
    report = migrate(path, out)
    tensors = load_file(out)
    assert set(tensors) == {
        "blocks.0.a.weight", "blocks.0.a.weight_scale", "blocks.0.a.input_scale",
        "blocks.0.a.comfy_quant", "blocks.0.b.weight", "blocks.0.b.weight_scale",
        "blocks.0.b.comfy_quant", "blocks.0.kept.weight", "stranger.codebook",
    }  # fmt: skip
    conf = {"format": "float8_e4m3fn" if dtype == torch.float8_e4m3fn else "float8_e5m2"}
    if marker == 2:
        conf["full_precision_matrix_mult"] = True
    assert layers(out) == {"blocks.0.a": conf, "blocks.0.b": conf}
    assert tensors["blocks.0.a.weight_scale"].shape == ()
    assert float(tensors["blocks.0.a.input_scale"]) == 0.25
    assert hashed(tensors["stranger.codebook"]) == hashed(load_file(path)["stranger.codebook"])
    assert codes(out) == codes(path) and metadata(out)["title"] == "old"
    assert any("2 scales of layers that are not quantized go" in note for note in report.notes)


def test_an_input_scale_of_one_means_none_in_a_legacy_file(tmp_path):
    tensors = load_file(legacy(tmp_path / "old.safetensors"))
    tensors["blocks.0.a.scale_input"] = torch.ones(())
    path = save(tmp_path / "ones.safetensors", tensors)
    report = migrate(path, tmp_path / "out.safetensors")
    assert "blocks.0.a.input_scale" not in load_file(tmp_path / "out.safetensors")
    assert any("input scales of 1.0 go" in note for note in report.notes)
    migrate(path, tmp_path / "kept.safetensors", add_input_scales=True)
    kept = load_file(tmp_path / "kept.safetensors")
    assert float(kept["blocks.0.a.input_scale"]) == float(kept["blocks.0.b.input_scale"]) == 1.0


@pytest.mark.parametrize("asked", [True, False])
def test_full_precision_may_be_set(tmp_path, asked):
    path = legacy(tmp_path / "old.safetensors", marker=0 if asked else 2)
    migrate(path, tmp_path / "out.safetensors", full_precision_matrix_mult=asked)
    found = {conf.get("full_precision_matrix_mult", False)
             for conf in layers(tmp_path / "out.safetensors").values()}  # fmt: skip
    assert found == {asked}


def test_layers_under_a_prefix(tmp_path):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor
               in load_file(legacy(tmp_path / "old.safetensors")).items()}  # fmt: skip
    path = save(tmp_path / "whole.safetensors", tensors)
    migrate(path, tmp_path / "out.safetensors")
    assert set(layers(tmp_path / "out.safetensors")) == {
        f"model.diffusion_model.blocks.0.{x}" for x in "ab"
    }
    migrate(tmp_path / "out.safetensors", tmp_path / "old2.safetensors", to="fp8_scaled")
    assert "model.diffusion_model.scaled_fp8" in load_file(tmp_path / "old2.safetensors")


# ---- shapes that could be several ----------------------------------------------------------------


def int8(tmp_path, size, scale):
    weight = torch.randint(-127, 128, size, dtype=torch.int8)
    path = tmp_path / "int8.safetensors"
    return save(path, {"a.weight": weight, "a.scale_weight": scale})


def test_a_column_of_scales_is_one_a_row_unless_one_says_lodewise(tmp_path):
    path = int8(tmp_path, (96, 64), torch.rand(96, 1))
    migrate(path, tmp_path / "1.safetensors")
    assert layers(tmp_path / "1.safetensors")["a"] == {"format": "int8_tensorwise"}
    migrate(path, tmp_path / "2.safetensors", format="int8_lodewise")
    assert layers(tmp_path / "2.safetensors")["a"] == {"format": "int8_lodewise", "group_size": 64}
    migrate(path, tmp_path / "3.safetensors", format="int8_lodewise", layers="b")
    assert layers(tmp_path / "3.safetensors")["a"]["format"] == "int8_tensorwise"


def test_one_block_is_one_scale_unless_a_block_size_is_given(tmp_path):
    path = int8(tmp_path, (64, 64), torch.rand(1, 1))
    migrate(path, tmp_path / "1.safetensors")
    assert layers(tmp_path / "1.safetensors")["a"] == {"format": "int8_tensorwise"}
    assert shape(tmp_path / "1.safetensors", "a.weight_scale") == ()
    migrate(path, tmp_path / "2.safetensors", block_size=64)
    assert layers(tmp_path / "2.safetensors")["a"] == {"format": "int8_blockwise", "group_size": 64}
    assert shape(tmp_path / "2.safetensors", "a.weight_scale") == (1, 1)
    assert codes(path) == codes(tmp_path / "2.safetensors")


def test_settings_that_shapes_contradict(tmp_path):
    path = int8(tmp_path, (128, 128), torch.rand(2, 2))
    out = tmp_path / "out.safetensors"
    with pytest.raises(FormatError, match=r"layer 'a': its blocks are 64, .* not 128"):
        migrate(path, out, block_size=128)
    with pytest.raises(FormatError, match=r"layer 'a': format int8_tensorwise does not fit"):
        migrate(path, out, format="int8_tensorwise")
    migrate(path, out, block_size=64, format="int8_blockwise")
    assert layers(out)["a"]["group_size"] == 64


def test_a_scale_in_another_dtype_is_stored_as_float32(tmp_path):
    path = int8(tmp_path, (32, 64), torch.rand(32).bfloat16())
    migrate(path, tmp_path / "out.safetensors")
    scale = load_file(tmp_path / "out.safetensors")["a.weight_scale"]
    assert scale.dtype == torch.float32 and scale.shape == (32, 1)
    assert torch.equal(scale[:, 0], load_file(path)["a.scale_weight"].float())


# ---- cleaning, and the older layout --------------------------------------------------------------


@pytest.mark.parametrize("marker", [0, 2])
def test_cleaning_chooses_the_marker(tmp_path, marker):
    path = legacy(tmp_path / "old.safetensors", marker=1)
    out = tmp_path / "out.safetensors"
    report = migrate(path, out, to="same", marker=marker)
    tensors = load_file(out)
    assert tensors["scaled_fp8"].shape == (marker,)
    assert tensors["scaled_fp8"].dtype == torch.float8_e4m3fn
    assert {"blocks.0.kept.scale_weight", "blocks.0.gone.scale_weight"}.isdisjoint(tensors)
    assert tensors["blocks.0.a.scale_weight"].shape == ()
    assert "blocks.0.b.scale_input" not in tensors
    assert codes(out) == codes(path) and report.title == "cleaned"
    assert migrate(out, tmp_path / "2.safetensors", to="same", marker=marker).changes == ()


def test_cleaning_keeps_the_marker_there_is(tmp_path):
    for elements in (0, 1, 2):
        path = legacy(tmp_path / f"{elements}.safetensors", marker=elements)
        migrate(path, tmp_path / "out.safetensors", to="same")
        assert shape(tmp_path / "out.safetensors", "scaled_fp8") == (elements,)
        (tmp_path / "out.safetensors").unlink()


def test_adding_input_scales_makes_a_marker_of_one(tmp_path):
    path = legacy(tmp_path / "old.safetensors", marker=2)
    out = tmp_path / "out.safetensors"
    migrate(path, out, to="same", add_input_scales=True)
    tensors = load_file(out)
    assert tensors["scaled_fp8"].shape == (1,)
    assert float(tensors["blocks.0.a.scale_input"]) == 0.25
    assert float(tensors["blocks.0.b.scale_input"]) == 1.0
    again = migrate(out, tmp_path / "2.safetensors", to="same", add_input_scales=True)
    assert again.changes == ()


def test_the_marker_follows_input_scales_where_nothing_else_says(tmp_path):
    for case, expected in (("fp8_tensor", 2), ("t5_fp8_tensor", 0)):
        out = tmp_path / f"{case}.safetensors"
        report = migrate(peer(case), out, to="fp8_scaled")
        assert shape(out, "scaled_fp8") == (expected,)
        assert bool(expected) == any("2 elements" in note for note in report.notes)
    migrate(peer("fp8_tensor"), tmp_path / "0.safetensors", to="fp8_scaled",
            full_precision_matrix_mult=False)  # fmt: skip
    assert shape(tmp_path / "0.safetensors", "scaled_fp8") == (0,)


def test_a_marker_left_over_goes(tmp_path):
    """With it, ComfyUI would take the layers' settings for those of a legacy file."""
    tensors = load_file(peer("fp8_tensor_no_header"))
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    path = save(tmp_path / "both.safetensors", tensors)
    migrate(path, tmp_path / "out.safetensors", to="same")
    assert "scaled_fp8" not in load_file(tmp_path / "out.safetensors")


def test_mixed_answers_need_a_decision(tmp_path):
    tensors = load_file(peer("fp8_tensor"))
    conf = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    tensors["img_in.comfy_quant"] = encode_conf(conf)
    path = save(tmp_path / "mixed.safetensors", tensors)
    with pytest.raises(FormatError, match=r"'img_in' asks for .* set full_precision_matrix_mult"):
        migrate(path, tmp_path / "out.safetensors", to="fp8_scaled")
    migrate(path, tmp_path / "out.safetensors", to="fp8_scaled", marker=2)


def test_two_fp8_dtypes_do_not_fit_one_marker(tmp_path):
    tensors = {}
    for name, dtype in (("a", torch.float8_e4m3fn), ("b", torch.float8_e5m2)):
        tensors[f"{name}.weight"] = torch.zeros(8, 8, dtype=dtype)
        tensors[f"{name}.weight_scale"] = torch.ones(())
    path = save(tmp_path / "two.safetensors", tensors)
    with pytest.raises(FormatError, match="different FP8 dtypes"):
        migrate(path, tmp_path / "out.safetensors", to="fp8_scaled")


# ---- refusals ------------------------------------------------------------------------------------


def test_hp_filter(tmp_path):
    path = legacy(tmp_path / "old.safetensors")
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"hp_filter 'a\$' .*'blocks\.0\.a' is F8_E4M3"):
        migrate(path, out, hp_filter="a$")
    assert not out.exists()
    migrate(path, out, hp_filter="kept")
    plain = save(tmp_path / "plain.safetensors", {
        "x.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)})  # fmt: skip
    with pytest.raises(CheckpointError, match="hp_filter"):
        migrate(plain, tmp_path / "2.safetensors", hp_filter="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gguf"}, "to"),
        ({"marker": 2}, "comfy_quant files have none"),
        ({"marker": 3, "to": "same"}, "marker"),
        ({"to": "same", "marker": 0, "full_precision_matrix_mult": True}, "contradict"),
        ({"to": "same", "marker": 2, "add_input_scales": True}, "contradict"),
        ({"full_precision_matrix_mult": True, "add_input_scales": True}, "contradict"),
        ({"format": "fp7"}, "unknown format 'fp7'"),
        ({"block_size": 0}, "block_size"),
        ({"layers": "x"}, "nothing is set for them"),
        ({"hp_filter": "("}, "bad regular expression"),
    ],
)
def test_settings_that_contradict_each_other(options, message):
    with pytest.raises(RecipeError, match=message):
        MigrateOptions(**options)


def test_files_with_nothing_to_convert(tmp_path):
    out = tmp_path / "out.safetensors"
    plain = save(tmp_path / "plain.safetensors", {"a.weight": torch.zeros(4, 4)})
    with pytest.raises(CheckpointError, match=r"plain\.safetensors .* quantize it"):
        migrate(plain, out)
    cast = save(tmp_path / "cast.safetensors",
                {"a.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)})  # fmt: skip
    with pytest.raises(CheckpointError, match="values as they stand"):
        migrate(cast, out)
    assert not out.exists()


def test_both_spellings_of_one_scale_are_refused(tmp_path):
    path = save(tmp_path / "both.safetensors", {
        "a.weight": torch.zeros(8, 8, dtype=torch.float8_e4m3fn),
        "a.scale_weight": torch.tensor(0.5),
        "a.weight_scale": torch.tensor(0.25),
    })  # fmt: skip
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"both 'a\.scale_weight' and 'a\.weight_sc"):
        migrate(path, tmp_path / "out.safetensors")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["bnb_nf4", "bnb_fp4"])
def test_bitsandbytes_files_become_comfy_quant(name, tmp_path):
    from roundsmith import Recipe, quantize_file

    source = save(tmp_path / "s.safetensors", {"a.fc.weight": torch.randn(96, 64).bfloat16()})
    path, out = tmp_path / "bnb.safetensors", tmp_path / "out.safetensors"
    quantize_file(source, path, Recipe(format=name, form="bitsandbytes", preset=None))
    report = migrate(path, out)
    assert report.facts["the file is"] == "another tool's layout"
    assert set(load_file(out)) == {"a.fc.weight", "a.fc.absmax", "a.fc.comfy_quant"}
    assert same_weights(path, out) and codes(path) == codes(out)
    assert migrate(out, tmp_path / "2.safetensors").changes == ()
    assert migrate(path, tmp_path / "3.safetensors", to="same").changes == ()
