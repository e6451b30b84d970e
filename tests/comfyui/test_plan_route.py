"""The layer picker's routes: planned as it is made, by names that ComfyUI lists and no others."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request

import pytest

from roundsmith.bridge import results
from roundsmith.nodes.plan_quantization import PlanQuantization
from roundsmith.nodes.quantization_recipe import QuantizationRecipe

from .client import PromptError

SOURCE = "diffusion_models/roundsmith-demo-flux-digits.safetensors"
WIDGETS = {"format": "nvfp4", "rounding": "nearest", "fallback": "keep in high precision"}


def ask(server, **body):
    return server.post("/roundsmith/plan", {"source": SOURCE, "widgets": WIDGETS, **body})


@pytest.fixture(scope="module")
def layers(server):
    return server.post("/roundsmith/layers", {"source": SOURCE})["layers"]


def named(layers, **wanted):
    keys = ("name", "block", "kind", "shape", "size")
    rows = [dict(zip(keys, row, strict=True)) for row in layers]
    return [row["name"] for row in rows if all(row[k] == v for k, v in wanted.items())]


def formats(made, layers):
    return {row[0]: made["texts"][x[1]] for row, x in zip(layers, made["layers"], strict=True)}


def test_what_is_picked_is_planned_and_made_to_the_byte(server, layers):
    """The rules as text, given to the node, make the plan that the picker showed."""
    block = named(layers, block="single_blocks.1")
    kind = named(layers, kind="img_attn.qkv")
    made = ask(
        server,
        picks=[
            {"choice": "int8_tensorwise convrot=auto", "layers": kind},
            {"choice": "keep", "layers": block},
        ],
    )
    found = formats(made, layers)
    assert {found[name] for name in kind} == {"int8_tensorwise"}
    assert {found[name] for name in block} == {""}
    assert made["rules"].splitlines() == [
        r"int8_tensorwise convrot=auto: \.img_attn\.qkv$",
        r"keep: ^single_blocks\.1\.",
    ]
    recipe = QuantizationRecipe.execute(
        {"format": "nvfp4"}, rounding={"rounding": "nearest"}, layer_rules=made["rules"]
    ).args[0]
    _, size, config = PlanQuantization.execute(SOURCE, {"format": "nvfp4"}, recipe=recipe).args
    assert size == made["size"]
    entries = json.loads(config)
    assert all(entries[f"^{re.escape(name)}$"]["skip"] for name in block)


def test_picking_back_undoes_a_rule_for_just_those_layers(server, layers):
    kind = named(layers, kind="img_attn.qkv")
    text = "# mine\nkeep: qkv"
    made = ask(
        server,
        widgets={**WIDGETS, "layer_rules": text},
        picks=[{"choice": "recipe", "layers": kind}],
    )
    found = formats(made, layers)
    assert {found[name] for name in kind} == {"nvfp4"}
    assert {found[name] for name in named(layers, kind="txt_attn.qkv")} == {""}
    assert made["rules"] == "# mine\nkeep: \\.txt_attn\\.qkv$"


def test_a_rule_is_picked_in_its_place_of_the_chain(server, layers):
    block = named(layers, block="double_blocks.0")
    rule = {"match": "", "format": "nvfp4", "rounding": "as the recipe"}
    before = {"match": "img_attn.qkv", "format": "keep in high precision"}
    made = ask(server, rules=[before, rule], at=1, picks=[{"choice": "mxfp8", "layers": block}])
    found = formats(made, layers)
    assert made["rules"] == r"^double_blocks\.0\."
    assert found["double_blocks.0.img_attn.qkv"] == "", "the rule before it decides"
    assert found["double_blocks.0.txt_attn.qkv"] == "mxfp8"


def test_what_was_measured_is_expected_again(server, layers):
    """A layer that was 5 dB worse than its format usually is stays so in another format."""
    names = [row[0] for row in layers]
    rows = [
        {"name": name.removeprefix("model."), "stored_as": "nvfp4", "executed_snr": level}
        for name, level in ((names[0], 30.0), (names[1], 20.0))
    ]
    report = results.keep({"rows": rows})
    usual = ask(server, picks=[{"choice": "mxfp8", "layers": names}])
    made = ask(server, picks=[{"choice": "mxfp8", "layers": names}], report=report)
    assert made["measured"] == 2 and usual["measured"] == 0
    difference = [a[3] - b[3] for a, b in zip(made["layers"], usual["layers"], strict=True)]
    assert difference[0] - difference[1] == pytest.approx(10, abs=0.11)
    assert not any(difference[2:])
    assert made["snr"] < usual["snr"]
    assert ask(server, report="0" * 32)["measured"] == 0, "details that are gone are no error"


@pytest.mark.parametrize(
    "source",
    [
        "diffusion_models/../../secret.safetensors",
        "/etc/passwd",
        "diffusion_models//etc/passwd",
        "C:\\windows\\win.ini",
        "loras/x.safetensors",
        "diffusion_models/unknown.safetensors",
        "",
        7,
    ],
)
def test_only_files_that_comfyui_lists(server, source):
    with pytest.raises(PromptError, match=r"is not among ComfyUI's models|which file"):
        ask(server, source=source)
    with pytest.raises(PromptError, match=r"is not among ComfyUI's models|which file"):
        server.post("/roundsmith/layers", {"source": source})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"widgets": {**WIDGETS, "layer_rules": "nvfp4 mlp"}}, "layer_rules, line 1"),
        ({"widgets": {**WIDGETS, "layer_rules": "\nfp9: mlp"}}, "layer_rules, line 2"),
        ({"widgets": {**WIDGETS, "exclude": "a("}}, "exclude"),
        ({"widgets": {}, "recipe": {"format": "fp9"}}, "unknown format 'fp9'"),
        ({"widgets": {}, "recipe": {"speed": 1}}, "speed: no such setting"),
        ({"picks": [{"choice": "keep", "layers": ["nope"]}]}, "no layer 'nope'"),
        ({"picks": [{"choice": "fp9", "layers": ["img_in"]}]}, "no such choice 'fp9'"),
        ({"rules": [{"match": " ", "format": "nvfp4"}]}, "match is empty"),
        ({"at": 3}, "at: the position"),
    ],
)
def test_what_is_wrong_is_named(server, body, said):
    with pytest.raises(PromptError) as refused:
        ask(server, **body)
    assert said in json.loads(str(refused.value))["error"]


def test_a_pattern_without_end_is_stopped(server):
    """A stranger's workflow may carry one."""
    began = time.monotonic()
    with pytest.raises(PromptError, match="takes too long"):
        ask(server, widgets={**WIDGETS, "layer_rules": r"keep: (?:[a-z0-9_.]|[a-z0-9_.]{2})+[A-Z]"})
    assert time.monotonic() - began < 10


def test_another_origin_is_refused(server):
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/roundsmith/plan",
        json.dumps({"source": SOURCE}).encode(),
        {"Content-Type": "application/json", "Origin": "http://elsewhere.example"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403
