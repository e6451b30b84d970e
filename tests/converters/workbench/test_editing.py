"""Edits of layers' settings: both places in step, values checked, codes left alone."""

from __future__ import annotations

import json

import pytest
import torch

from roundsmith.checkpoints import Checkpoint, decode_conf, encode_conf, read_layers
from roundsmith.checkpoints.quantization import HEADER_KEY
from roundsmith.converters.editing import EditOptions, edit_file, parse_keys, parse_settings
from roundsmith.converters.patching import Destination
from roundsmith.errors import CheckpointError, FormatError, RecipeError

from .files import CASES, LEGACY, codes, contents, legacy, metadata, peer, same_weights, save

EDITED = [case for case in CASES if case not in LEGACY]
QKV = "double_blocks.0.img_attn.qkv"


def edit(path, out, **options):
    return edit_file(path, Destination(out), EditOptions(**options))


def settings(path):
    """Layers' settings in the header, and in the tensors."""
    header = json.loads(metadata(path).get(HEADER_KEY, '{"layers": {}}'))["layers"]
    with Checkpoint.open(path) as source:
        tensors = {
            name.removesuffix(".comfy_quant"): decode_conf(source.read(name))
            for name in source.tensors
            if name.endswith(".comfy_quant")
        }
    return header, tensors


@pytest.mark.parametrize("case", EDITED)
def test_the_peers_files_are_edited_without_loss(case, tmp_path):
    """Every mode: codes keep their bytes, both places agree, a second run changes nothing."""
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    edit(peer(case), out, set={"note": [1, {"deep": None}], "full_precision_matrix_mult": True})
    assert codes(out) == codes(peer(case))
    header, tensors = settings(out)
    assert header == tensors and header
    assert all(conf["note"] == [1, {"deep": None}] for conf in header.values())
    with Checkpoint.open(peer(case)) as source:
        before = read_layers(source).layers
    for layer, conf in before.items():
        kept = {k: v for k, v in conf.items() if k not in ("note", "full_precision_matrix_mult")}
        assert {k: header[layer][k] for k in kept} == kept
    others = {k: v for k, v in metadata(peer(case)).items() if k != HEADER_KEY}
    assert {k: v for k, v in metadata(out).items() if k != HEADER_KEY} == others
    report = edit(
        out, again, set={"note": [1, {"deep": None}], "full_precision_matrix_mult": True}
    )
    assert report.changes == () and again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("case", EDITED)
def test_readers_get_the_same_weights(case, tmp_path):
    out = tmp_path / "out.safetensors"
    edit(peer(case), out, set={"note": "x"})
    assert same_weights(peer(case), out)


def test_set_add_update_and_remove_by_pattern(tmp_path):
    out = tmp_path / "out.safetensors"
    report = edit(
        peer("fp8_tensor"),
        out,
        layers="img_attn",
        set={"a": 1},
        add={"orig_dtype": "torch.float16", "b": 2},
        update={"c": 3},
        remove=("per_row",),
    )
    header, tensors = settings(out)
    for layer in (QKV, "double_blocks.0.img_attn.proj"):
        assert header[layer] == tensors[layer]
        assert header[layer]["orig_dtype"] == "torch.bfloat16", "it has one: not added"
        assert header[layer]["a"] == 1 and header[layer]["b"] == 2 and "c" not in header[layer]
    assert "a" not in header["img_in"]
    assert {x.entry for x in report.changes} == {QKV, "double_blocks.0.img_attn.proj"}
    assert any("c, per_row: no selected layer has this" in note for note in report.notes)
    assert any("a, b, c: no loader" in note for note in report.notes)
    edit(out, tmp_path / "2.safetensors", update={"a": 5}, remove=("b",))
    header, _ = settings(tmp_path / "2.safetensors")
    assert header[QKV]["a"] == 5 and "b" not in header[QKV] and "a" not in header["img_in"]


def test_the_report_shows_before_and_after(tmp_path):
    report = edit(peer("fp8_tensor"), tmp_path / "o.safetensors", layers="img_in",
                  update={"orig_dtype": "torch.float32"})  # fmt: skip
    (change,) = report.changes
    assert (change.entry, change.what) == ("img_in", "orig_dtype")
    assert (change.before, change.after) == ("torch.bfloat16", "torch.float32")
    assert change.where == "header and comfy_quant"
    assert "torch.bfloat16  torch.float32" in report.table()


def test_a_missing_header_is_built_unless_not_wanted(tmp_path):
    path = peer("fp8_tensor_no_header")
    assert HEADER_KEY not in metadata(path)
    edit(path, tmp_path / "1.safetensors")
    header, tensors = settings(tmp_path / "1.safetensors")
    assert header == tensors and len(header) == 5
    edit(path, tmp_path / "2.safetensors", header=False, set={"a": 1})
    assert HEADER_KEY not in metadata(tmp_path / "2.safetensors")
    assert settings(tmp_path / "2.safetensors")[1][QKV]["a"] == 1


def test_nested_settings_come_out_and_scalars_get_their_shape(tmp_path):
    path = save(tmp_path / "nested.safetensors", {
        "a.weight": torch.zeros(64, 64, dtype=torch.int8),
        "a.weight_scale": torch.ones(1),
        "a.input_scale": torch.ones(1),
        "a.comfy_quant": encode_conf({"format": "int8_tensorwise", "params": {"per_row": False}}),
        "b.weight": torch.zeros(64, 32, dtype=torch.int8),
        "b.weight_scale": torch.arange(64.0),
        "b.comfy_quant": encode_conf({"format": "int8_tensorwise"}),
        "c.weight": torch.zeros(64, 64, dtype=torch.int8),
        "c.weight_scale": torch.ones(1, 1),
        "c.comfy_quant": encode_conf({"format": "int8_blockwise", "group_size": 64}),
    })  # fmt: skip
    out = tmp_path / "out.safetensors"
    report = edit(path, out)
    header, tensors = settings(out)
    assert header["a"] == tensors["a"] == {"format": "int8_tensorwise", "per_row": False}
    after = contents(out)
    assert after["a.weight_scale"][1] == after["a.input_scale"][1] == ()
    assert after["b.weight_scale"][1] == (64, 1)
    assert after["c.weight_scale"][1] == (1, 1), "a grid of one block is no scalar"
    assert ("a", "params") in {(x.entry, x.what) for x in report.changes}
    assert codes(path) == codes(out)
    kept = edit(path, tmp_path / "kept.safetensors", normalise_scalars=False)
    assert contents(tmp_path / "kept.safetensors")["a.weight_scale"][1] == (1,)
    assert not [x for x in kept.changes if x.what == "shape"]


def test_layers_known_by_their_tensors_get_settings(tmp_path):
    path = save(tmp_path / "bare.safetensors", {
        "a.weight": torch.zeros(32, 32, dtype=torch.float8_e4m3fn),
        "a.weight_scale": torch.ones(32),
    })  # fmt: skip
    edit(path, tmp_path / "out.safetensors")
    header, tensors = settings(tmp_path / "out.safetensors")
    assert header == tensors == {"a": {"format": "float8_e4m3fn_rowwise"}}


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("fp8_tensor", {"full_precision_matrix_mult": 1}, "it is true or false"),
        ("fp8_tensor_full_precision", {"full_precision_matrix_mult": 1}, "it is true or false"),
        ("fp8_tensor", {"format": "fp7"}, "unknown format 'fp7'"),
        ("fp8_tensor", {"format": "fp8"}, "loaders know it as float8_e4m3fn"),
        ("fp8_tensor", {"format": "nvfp4"}, "its tensors are float8_e4m3fn"),
        ("fp8_tensor", {"format": 8}, "a format's name is text"),
        ("fp8_tensor", {"group_size": "64"}, "a whole number above 0"),
        ("fp8_tensor", {"group_size": True}, "a whole number above 0"),
        ("fp8_tensor", {"orig_dtype": "float7"}, "a dtype is text"),
        ("fp8_tensor", {"convrot": True}, "never rotated"),
        ("int8_row", {"convrot_groupsize": 128}, "it is one of"),
        ("int8_block64", {"group_size": 32}, "whose blocks are 64"),
        ("mxfp8", {"orig_shape": [1, 2]}, "does not fit its tensors"),
        ("mxfp8", {"orig_shape": [1, -2]}, "a shape is a list"),
        ("int8_convrot256", {"convrot_groupsize": 1024}, "does not divide"),
    ],
)
def test_values_are_checked_by_format(case, changes, message, tmp_path):
    before = peer(case).read_bytes()
    with pytest.raises((RecipeError, FormatError), match=message) as caught:
        edit(peer(case), tmp_path / "out.safetensors", set=changes)
    assert "layer '" in str(caught.value)
    assert list(tmp_path.iterdir()) == [] and peer(case).read_bytes() == before


def test_group_size_may_stand_on_any_format(tmp_path):
    edit(peer("fp8_tensor"), tmp_path / "out.safetensors", set={"group_size": 32})


def test_an_edit_can_mend_a_format_nothing_reads(tmp_path):
    path = save(tmp_path / "wrong.safetensors", {
        "a.weight": torch.zeros(32, 32, dtype=torch.float8_e4m3fn),
        "a.weight_scale": torch.ones(()),
        "a.comfy_quant": encode_conf({"format": "fp8_e4m3_typo"}),
    })  # fmt: skip
    report = edit(path, tmp_path / "out.safetensors", set={"format": "float8_e4m3fn"})
    assert settings(tmp_path / "out.safetensors")[1]["a"]["format"] == "float8_e4m3fn"
    assert any("says how codes are read" in note for note in report.notes)


def test_what_contradicts_itself_is_refused():
    with pytest.raises(RecipeError, match="in set and in remove"):
        EditOptions(set={"a": 1}, remove=("a",))
    with pytest.raises(RecipeError, match="'format' says what a layer's codes are"):
        EditOptions(remove=("format",))
    with pytest.raises(RecipeError, match="no key of its own"):
        EditOptions(set={"params": {}})
    with pytest.raises(RecipeError, match="bad regular expression"):
        EditOptions(layers="(")


def test_patterns_that_never_end_are_stopped(tmp_path):
    tensors = {f"{'a' * 40}.weight": torch.zeros(32, 32, dtype=torch.float8_e4m3fn),
               f"{'a' * 40}.weight_scale": torch.ones(()),
               f"{'a' * 40}.comfy_quant": encode_conf({"format": "float8_e4m3fn"})}  # fmt: skip
    path = save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(RecipeError, match="takes too long"):
        edit(path, tmp_path / "out.safetensors", layers=r"(a|aa|a?a)+(b|c)\1$", set={"x": 1})


def test_files_of_another_kind(tmp_path):
    out = tmp_path / "out.safetensors"
    plain = save(tmp_path / "plain.safetensors", {"a.weight": torch.zeros(4, 4)})
    with pytest.raises(CheckpointError, match="no quantized layers"):
        edit(plain, out)
    with pytest.raises(CheckpointError, match=r"legacy layout.*migrate"):
        edit(legacy(tmp_path / "old.safetensors"), out)
    with pytest.raises(CheckpointError, match="none of the 5 quantized layers"):
        edit(peer("fp8_tensor"), out, layers="nowhere")
    assert not out.exists()


# ---- values as people type them ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"a": true, "b": [1, 2.5], "c": null, "d": "x"}',
        "'a': True, 'b': [1, 2.5], 'c': None, 'd': 'x'",
        "{'a': True, 'b': (1, 2.5), 'c': None, \"d\": \"x\"}",
        "a = true\nb = [1, 2.5]\n\n  c = null\nd = x",
        "a=True\nb=(1, 2.5)\nc=None\nd='x'",
    ],
)
def test_all_forms_say_the_same(text):
    assert parse_settings(text) == {"a": True, "b": [1, 2.5], "c": None, "d": "x"}


def test_nothing_is_nothing():
    assert parse_settings(" \n ") == {} and parse_keys(" ,\n") == ()
    assert parse_keys("'a', b\nc,a") == ("a", "b", "c")


def test_negative_numbers_and_words():
    assert parse_settings("a = -3\nb = torch.bfloat16") == {"a": -3, "b": "torch.bfloat16"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "cannot be read"),
        ("a = __import__('os')", "a: .* cannot be read"),
        ("'a': open('x')", "cannot be read"),
        ("'a': 1, 'a': 2", "'a' is given twice"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("a = 1\na = 2", "'a' is given twice"),
        ("a = 1\nnonsense", "is not key = value"),
        ("'a': 1e999", "no JSON number"),
        ('{"a": NaN}', "no JSON number"),
        ("1: 2", "cannot be read"),
        ("'a': " + "[" * 5000 + "]" * 5000, "nested too deeply|cannot be read"),
        ('{"a": ' + "[" * 40000 + "]" * 40000 + "}", "nested too deeply|cannot be read"),
        ("x" * 200_000, "at most 100,000"),
        ("a = {1, 2}", "cannot be read"),
        ("[1, 2]", "cannot be read"),
    ],
)
def test_text_that_says_nothing_sensible(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_settings(text, "--set")
    assert str(caught.value).startswith("--set") and len(str(caught.value)) < 300
