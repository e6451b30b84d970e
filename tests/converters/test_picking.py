"""Layers picked by hand as patterns, and rules as text."""

from __future__ import annotations

import random
import re
import time

import pytest

from roundsmith.converters import Rule
from roundsmith.converters.matching import patience, search_pattern
from roundsmith.converters.picking import patterns_for, place
from roundsmith.converters.rule_text import parse_lines, parse_rules, write_rules
from roundsmith.errors import RecipeError

KINDS = ("img_attn.qkv", "img_attn.proj", "img_mlp.0", "txt_attn.qkv", "txt_mlp.0")
NAMES = (
    *(f"double_blocks.{i}.{kind}" for i in range(12) for kind in KINDS),
    *(f"single_blocks.{i}.linear{j}" for i in range(30) for j in (1, 2)),
    *("img_in", "final_layer.linear", "strange.(a|b)+.weight?", "double_blocks.1"),
)


def matched(patterns, names=NAMES):
    assert all(len(pattern) <= 1000 for pattern in patterns)
    return {name for name in names if any(re.search(pattern, name) for pattern in patterns)}


@pytest.mark.parametrize(
    ("wanted", "patterns"),
    [
        (r"qkv", [r"\.qkv$"]),
        (r"img_attn\.qkv", [r"\.img_attn\.qkv$"]),
        (r"^single", [r"^single_blocks\."]),
        (r"^single_blocks\.7\.", [r"^single_blocks\.7\."]),
        (r"^single_blocks\.[012]\.", [r"^single_blocks\.(?:0|1|2)\."]),
        (r"^double_blocks\.3\.img_mlp", [r"^double_blocks\.3\.img_mlp\.0$"]),
        (r"mlp", [r"\.(?:img_mlp\.0|txt_mlp\.0)$"]),
        (r"img_in", [r"^img_in$"]),
        (r"strange", [r"^strange\.\(a\|b\)\+\.weight\?$"]),
    ],
)
def test_patterns_are_short_where_they_can_be(wanted, patterns):
    chosen = [name for name in NAMES if re.search(wanted, name)]
    assert patterns_for(chosen, NAMES) == patterns
    assert matched(patterns) == set(chosen)


@pytest.mark.parametrize("seed", range(12))
def test_patterns_match_just_what_was_picked(seed):
    drawn = random.Random(seed)
    names = list(NAMES) + [
        f"input_blocks.{i}.1.transformer_blocks.{j}.{kind}"
        for i in range(5) for j in range(i + 1) for kind in ("attn1.to_q", "ff.net.0.proj", "norm")
    ]  # fmt: skip
    drawn.shuffle(names)
    chosen = drawn.sample(names, drawn.randrange(1, len(names)))
    assert matched(patterns_for(chosen, names), names) == set(chosen)


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("double_blocks.3.img_mlp.0", "double_blocks.3", "img_mlp.0"),
        ("model.layers.10.mlp.up_proj", "model.layers.10", "mlp.up_proj"),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
         "input_blocks.4.1.transformer_blocks.0", "attn1.to_out.0"),
        ("transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0", "ff.net.0.proj"),
        ("time_embed.0", "", "time_embed.0"),
        ("img_in", "", "img_in"),
    ],
)  # fmt: skip
def test_places(name, block, kind):
    assert (place(name).block, place(name).kind) == (block, kind)


def test_rules_as_text_and_back():
    rules = (
        Rule(match="^a: b=c", format="int8_tensorwise", convrot="auto"),
        Rule(match="x", skip=True),
        Rule(match=r"\d", rounding="nearest", scale_search=True),
        Rule(match="q", format="int8_tensorwise", convrot=64, scaling="row"),
    )
    text = write_rules(rules)
    assert text.splitlines()[:2] == ["int8_tensorwise convrot=auto: ^a: b=c", "keep: x"]
    assert parse_rules(text) == rules
    assert parse_rules('[{"match": "x", "skip": true}]') == (rules[1],)
    assert [line.rule for line in parse_lines("# why\n\nkeep: x")] == [None, None, rules[1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep: a\nnvfp4 mlp", "line 2: 'nvfp4 mlp' is not SETTINGS: PATTERN"),
        ("fp9: a", "line 1: .*unknown format 'fp9'"),
        ("nvfp4: a(", r"line 1: .*bad regular expression 'a\('"),
        ("nvfp4 convrot=3: a", "line 1: .*convrot"),
        ("nvfp4 fast: a", "line 1: 'fast' is not NAME=VALUE"),
        ("nvfp4 speed=1: a", "line 1: .*speed: no such setting"),
        ("[1]", "rule 1 is not a JSON object"),
        ("[{", "not valid JSON"),
    ],
)
def test_text_that_is_wrong_names_the_line(text, said):
    with pytest.raises(RecipeError, match=f"layer_rules.*{said}"):
        parse_rules(text)


def test_patterns_that_are_slow_on_many_names_are_stopped():
    """None of these names takes the half second that one may."""
    names = [f"{'a' * 24}{i}" for i in range(100_000)]
    began = time.monotonic()
    with pytest.raises(RecipeError, match="takes too long"), patience(0.3):
        for name in names:
            search_pattern("(?:[a-z]|[a-z]{2})+[A-Z]", name)
    assert time.monotonic() - began < 5
