"""Presets: each family is recognised by its real key names, in files and in checkpoints."""

from __future__ import annotations

import json
import random

import pytest

from roundsmith.converters.preset_files import (
    ENVIRONMENT,
    Preset,
    load_presets,
    user_presets_file,
)
from roundsmith.converters.presets import detect, resolve
from roundsmith.errors import RecipeError

from .families import FAMILIES, MANUAL, T5_DECODER, linears, names_of

# --- recognising -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.title)
def test_family_is_recognised(case):
    found = detect(names_of(case))
    assert (found.preset, found.kind, found.warning) == (case.preset, case.kind, None)
    assert found.evidence == f"{case.preset}: {case.evidence}"


PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "transformer.")
DIFFUSION = [case for case in FAMILIES if case.kind == "diffusion"]


@pytest.mark.parametrize(
    "case, prefix",
    [(case, PREFIXES[index % len(PREFIXES)]) for index, case in enumerate(DIFFUSION)],
    ids=lambda value: value if isinstance(value, str) else value.title,
)
def test_prefix_is_found_and_changes_nothing(case, prefix):
    plain, names = names_of(case), [prefix + name for name in names_of(case)]
    found = detect(names)
    assert (found.preset, found.prefix, found.kind) == (case.preset, prefix, "diffusion")
    without, policy = resolve("auto", plain), resolve("auto", names)
    for name in plain:
        assert policy.decide(prefix + name, (64, 64)) == without.decide(name, (64, 64))


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.title)
def test_no_other_family_says_as_much(case):
    """The chosen rule must win by what it demands, not by the alphabet."""
    blob = "\n".join(sorted(names_of(case)))
    scores = {}
    for preset in load_presets().values():
        for rule in preset.recognise:
            parts = rule.evidence(blob)
            if parts is not None:
                scores[preset.name] = max(scores.get(preset.name, 0), len(parts) + len(rule.none))
    best = scores.pop(case.preset)
    assert all(score < best for score in scores.values()), scores
    assert not scores or case.preset in ("mistral",)  # mistral is llama's shape with a telling size


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.title)
def test_order_of_names_plays_no_part(case):
    names = names_of(case)
    expected = detect(names)
    random.Random(0).shuffle(names)
    assert detect(names) == expected
    assert detect(dict.fromkeys(reversed(names))) == expected


def test_every_preset_is_reached_or_chosen_by_hand():
    presets = load_presets()
    reached = {case.preset for case in FAMILIES}
    assert {name for name, preset in presets.items() if not preset.recognise} == set(MANUAL)
    assert set(presets) == reached | set(MANUAL)
    assert all("by hand" in presets[name].help for name in MANUAL)
    assert all(preset.help for preset in presets.values())


def test_schnell_has_no_guidance_and_hunyuan3d_is_not_flux():
    dev = next(case for case in FAMILIES if case.title == "flux1 dev")
    schnell = [name for name in names_of(dev) if not name.startswith("guidance_in")]
    assert detect(schnell).evidence == "flux1: double_blocks × 19, single_blocks × 38, vector_in"
    shape = [name for name in schnell if not name.startswith("vector_in")]
    assert detect([*shape, "latent_in.weight", "guidance_in.in_layer.weight"]).preset is None


def test_unknown_model_names_the_file_that_could_describe_it(tmp_path):
    names = [
        "conv_in.weight",
        "blocks.0.wibble.weight",
        "blocks.0.proj_out.weight",
        "proj_out.weight",
    ]
    found = detect(names)
    assert (found.preset, found.evidence, found.kind) == (None, "", "unknown")
    assert str(user_presets_file()) in found.warning
    extra = tmp_path / "other.json"
    extra.write_text("[]")
    assert str(extra) in detect(names, extra).warning
    policy = resolve("auto", names)
    assert policy.warnings == (found.warning,)
    assert linears(policy, names) == ["blocks.0.wibble", "blocks.0.proj_out"]
    assert policy.decide("proj_out.weight", (64, 64)).reason == "keep:^proj_out (guess)"
    assert resolve("flux1", names).warnings == ()


# --- whole checkpoints -------------------------------------------------------------------------


def checkpoint(title, *others):
    case = next(case for case in FAMILIES if case.title == title)
    return ["model.diffusion_model." + name for name in names_of(case)] + list(others)


CLIP_L = [f"text_model.encoder.layers.{i}.mlp.fc1.weight" for i in range(12)]
VAE = ["encoder.mid.attn_1.q.weight", "decoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"]


def test_sd15_checkpoint_quantizes_its_unet_only():
    clip = ["cond_stage_model.transformer." + n for n in CLIP_L]
    names = checkpoint("sd15", *clip, *("first_stage_model." + n for n in VAE), "model_ema.decay")
    found = detect(names)
    assert (found.preset, found.kind, found.prefix) == (
        "sd15",
        "checkpoint",
        "model.diffusion_model.",
    )
    policy = resolve("auto", names)
    chosen = linears(policy, names)
    assert chosen and all(name.startswith("model.diffusion_model.") for name in chosen)
    assert (
        policy.decide("first_stage_model.encoder.mid.attn_1.q", (64, 64)).reason
        == "a VAE is never quantized"
    )
    clip_layer = policy.decide(clip[0], (64, 64))
    assert clip_layer.action == "keep" and clip_layer.final
    assert policy.decide("model_ema.decay", ()).reason == "not part of the model"


def test_sd3_checkpoint_quantizes_the_text_encoder_it_recognises():
    t5 = next(case for case in FAMILIES if case.title == "t5xxl")
    names = checkpoint(
        "sd3",
        *("text_encoders.t5xxl.transformer." + n for n in names_of(t5)),
        *("text_encoders.clip_l.transformer." + n for n in CLIP_L),
        *("first_stage_model." + n for n in VAE),
    )
    found = detect(names)
    assert found.kind == "checkpoint" and found.preset == "sd3"
    assert "text_encoders.t5xxl.transformer.t5xxl: encoder.block × 24" in found.evidence
    chosen = linears(resolve("auto", names), names)
    assert any(n.startswith("text_encoders.t5xxl.transformer.encoder") for n in chosen)
    assert not any("clip_l" in n or n.startswith("first_stage") for n in chosen)
    assert not any("t5xxl" in n for n in linears(resolve("sd3", names), names))
    assert any("t5xxl" in n for n in linears(resolve(["sd3", "t5xxl"], names), names))
    assert not any("t5xxl" in n for n in linears(resolve(None, names), names))


def test_removing_a_t5_decoder_never_reaches_another_part():
    names = checkpoint("sd3", *("text_encoders.t5xxl.transformer." + n for n in T5_DECODER))
    names.append("model.diffusion_model.decoder.layers.0.mlp.weight")
    policy = resolve(["sd3", "t5xxl"], names)
    assert policy.decide(names[-1], (64, 64)).action == "quantize"
    assert policy.decide("first_stage_model.decoder.conv_in.weight", (64, 64)).action == "keep"


def test_a_vae_alone_is_left_alone():
    names = ["vae." + n for n in VAE]
    found = detect(names)
    assert found.kind == "unknown" and "VAE" in found.warning
    assert linears(resolve("auto", names), names) == []


# --- the person's own file ---------------------------------------------------------------------


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_own_file_adds_and_overrides(tmp_path):
    mine = [
        {
            "name": "wibble",
            "category": "diffusion",
            "recognise": [{"all": ["blocks", "wibble"]}],
            "keep": ["wobble"],
        },
        {"name": "flux1", "keep": ["img_in"]},
    ]
    file = write(tmp_path / "p.json", mine)
    names = ["blocks.0.wibble.weight", "blocks.1.wibble.weight", "blocks.1.wobble.weight"]
    assert detect(names, file).evidence == "wibble: blocks × 2, wibble"
    assert detect(names).preset is None
    assert linears(resolve("auto", names, file), names) == ["blocks.0.wibble", "blocks.1.wibble"]
    flux = load_presets(file)["flux1"]
    assert flux.keep == ("img_in",) and flux.recognise == load_presets()["flux1"].recognise


def test_own_file_is_found_where_it_belongs(monkeypatch, tmp_path):
    write(user_presets_file(), [{"name": "mine", "category": "diffusion"}])
    assert "mine" in load_presets()
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_presets_file() == tmp_path / "roundsmith" / "presets.json"


def test_own_file_can_change_what_holds_everywhere(tmp_path):
    file = write(tmp_path / "p.json", [{"name": "everywhere", "keep": ["tail"]}])
    policy = resolve(None, ["lm_head", "tail"], file)
    assert [policy.decide(n, (4, 4)).action for n in ("lm_head", "tail")] == ["quantize", "keep"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{not json", ["cannot be read"]),
        ({"name": "x"}, ["list of entries"]),
        ([{"keep": []}], ["entry 0", "'name'"]),
        ([{"name": "auto", "category": "diffusion"}], ["entry 0", "'name'"]),
        ([{"name": "x"}], ["entry 0", "'x'", "'category'"]),
        ([{"name": "flux1"}, {"name": "x", "category": "film"}], ["entry 1", "'category'"]),
        ([{"name": "flux1", "kep": ["a"]}], ["'flux1'", "'kep'"]),
        ([{"name": "flux1", "keep": "img_in"}], ["'flux1'", "'keep'"]),
        ([{"name": "flux1", "keep": [""]}], ["'flux1'", "'keep'", "empty"]),
        ([{"name": "flux1", "recognise": [{"every": ["a"]}]}], ["'recognise.0.every'"]),
    ],
)
def test_bad_file_is_named_with_entry_and_field(tmp_path, content, words):
    file = write(tmp_path / "bad.json", content)
    with pytest.raises(RecipeError) as error:
        load_presets(file)
    assert all(word in str(error.value) for word in [str(file), *words])


def test_missing_file_that_was_asked_for(tmp_path):
    with pytest.raises(RecipeError, match=r"no\.json"):
        load_presets(tmp_path / "no.json")


def test_preset_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Preset(name="a", category="diffusion").name = "b"
