"""Capturing: what is seen, which layers share a record, and that nothing stays behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from roundsmith.converters.calibration import Capture, capture
from roundsmith.errors import RecipeError, RoundsmithError


class Attention(nn.Module):
    """Three layers fed by one tensor, called in three ways, and one fed by another."""

    def __init__(self, width=16):
        super().__init__()
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x, key=None, value=None):
        key, value = x if key is None else key, x if value is None else value
        mixed = torch.softmax(self.query(x) @ self.key(input=key).mT, -1) @ self.value(value)
        return self.out(mixed)


def inputs(count=5, width=16, tokens=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, width, generator=generator) for _ in range(count)]


def tokens_of(record):
    return {tuple(row) for row in record.tokens.tolist()}


def as_tokens(*tensors):
    return {tuple(row) for x in tensors for row in x.bfloat16().reshape(-1, x.shape[-1]).tolist()}


def everything_on(module):
    return {
        name: {k: dict(v) if isinstance(v, dict) else v for k, v in vars(child).items()}
        for name, child in module.named_modules()
    }


def test_layers_fed_by_one_tensor_share_a_record():
    model, xs = Attention(), inputs()
    with capture(model) as calibration:
        for x in xs:
            model(x)
    assert calibration.layers == ("query", "key", "value", "out")
    assert calibration.shares("key") == ("query", "key", "value")
    assert calibration.shares("out") == ("out",)
    assert tokens_of(calibration.record("value")) == as_tokens(*xs)
    assert calibration.warnings == [] and calibration.notes == []


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_gradient_mode_and_records_usable_in_every_mode(mode):
    model, xs = Attention(), inputs()
    with capture(model) as calibration, mode():
        for x in xs:
            model(x)
    record = calibration.record("query")
    assert record.count == 200 and calibration.shares("query") == ("query", "key", "value")
    split = record.split()
    weight = nn.Parameter(torch.ones(16))
    (split.moment @ weight).sum().backward()  # inference tensors could not be saved for this
    assert not record.tokens.requires_grad


def test_modes_may_change_between_calls():
    model, xs = Attention(), inputs()
    with capture(model) as calibration:
        for x, mode in zip(xs, [torch.inference_mode, torch.no_grad] * 3, strict=False):
            with mode():
                model(x)
    assert calibration.record("out").count == 200


def test_half_precision_products_do_not_reach_the_moment():
    model = Attention()
    xs = inputs(tokens=3000)
    with capture(model) as calibration, torch.autocast("cpu", torch.bfloat16):
        for x in xs:
            model(x)
    record = calibration.record("query")
    x = torch.cat(xs).double()
    known = record.moment.double() * record.moment_count
    known += record.tokens.double().T @ record.tokens.double()
    torch.testing.assert_close(known / len(x), x.T @ x / len(x), rtol=1e-3, atol=1e-4)


def test_nothing_stays_on_the_module_and_no_input_is_kept():
    model = Attention()
    before = everything_on(model)
    references = []
    with capture(model) as calibration:
        for x in inputs():
            x = x.clone()
            references.append(weakref.ref(x))
            model(x)
            del x
        assert all(reference() is None for reference in references)
    assert everything_on(model) == before
    watch = weakref.ref(model)
    del model, before
    gc.collect()
    assert watch() is None
    assert calibration.record("out") is not None


def test_a_layer_that_stops_sharing_goes_on_with_what_both_saw():
    model, (a, b, c, d, e) = Attention(), inputs()
    with capture(model) as calibration:
        model(a)
        model(b, key=c)
        model(d)
        model(e)
    assert tokens_of(calibration.record("query")) == as_tokens(a, b, d, e)
    assert tokens_of(calibration.record("value")) == as_tokens(a, b, d, e)
    assert tokens_of(calibration.record("key")) == as_tokens(a, c, d, e)
    assert calibration.record("key").count == 160


def test_a_layer_left_out_of_a_call_does_not_get_its_tokens():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(16, 4) for _ in range(3))

        def forward(self, x, names):
            for name in names:
                getattr(self, name)(x)

    model, (v, w, x, y, z) = Sometimes(), inputs()
    with capture(model, max_tokens=1000) as calibration:
        model(v, "abc")
        model(w, "a")
        model(x, "ab")
        model(y, "b")
        model(z, "c")
    assert tokens_of(calibration.record("a")) == as_tokens(v, w, x)
    assert tokens_of(calibration.record("b")) == as_tokens(v, x, y)
    assert tokens_of(calibration.record("c")) == as_tokens(v, z)


def test_a_layer_first_called_later_does_not_take_over_a_record():
    model, (a, b, _, _, _) = Attention(), inputs()
    with capture(model) as calibration:
        model.query(a)
        model(b)
    assert tokens_of(calibration.record("query")) == as_tokens(a, b)
    assert tokens_of(calibration.record("key")) == as_tokens(b)
    assert calibration.shares("key") == ("key", "value")


def test_a_second_call_with_the_same_tensor_counts_again_for_all_alike():
    model, x = Attention(), inputs()[0]
    with capture(model) as calibration:
        for _ in range(3):
            model(x)
    assert calibration.record("query").count == calibration.record("value").count == 120
    assert calibration.shares("query") == ("query", "key", "value")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_tensor_written_to_between_two_layers_is_another_one(mode):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            x += self.a(x)
            return self.b(x)

    model, x = Residual(), inputs()[0]
    with mode():
        own, after = x.clone(), x + model.a(x)
        with capture(model) as calibration:
            model(own)
    assert tokens_of(calibration.record("b")) == as_tokens(after)
    assert calibration.shares("b") == ("b",)


def test_keyword_nested_and_foreign_inputs():
    class Odd(nn.Module):
        """Has a matrix and its widths: a linear layer, whatever it is called with."""

        def __init__(self):
            super().__init__()
            self.weight, self.in_features, self.out_features = torch.ones(3, 4), 4, 3

        def forward(self, batch, other=None):
            return 0

    model = nn.ModuleDict({name: Odd() for name in ("nested", "keyword", "foreign", "never")})
    x = torch.randn(2, 5, 4)
    with capture(model) as calibration:
        model["nested"]([{"ids": torch.arange(4), "x": (torch.randn(3), x)}])
        model["keyword"](batch=None, other=x)
        model["foreign"]("text", other=torch.randn(5))
    assert tokens_of(calibration.record("nested")) == as_tokens(x)
    assert tokens_of(calibration.record("keyword")) == as_tokens(x)
    assert calibration.record("foreign") is None
    assert "1 layers were called without a tensor as wide" in calibration.notes[0]
    assert calibration.unreached == ("foreign", "never")
    assert "2 of 4 layers were never reached" in calibration.warnings[0]


def test_a_linear_layer_itself_can_be_captured():
    with capture(nn.Linear(4, 2)) as calibration:
        pass
    assert calibration.layers == ("",) and calibration.record("") is None


def test_an_error_in_the_block_leaves_the_module_alone_and_no_statistics():
    model = Attention()
    before = everything_on(model)
    with pytest.raises(ZeroDivisionError), capture(model) as calibration:
        model(inputs()[0])
        raise ZeroDivisionError("in the sampler")
    assert everything_on(model) == before
    with pytest.raises(RoundsmithError, match="ended in ZeroDivisionError: in the sampler"):
        calibration.record("query")
    with pytest.raises(RoundsmithError, match="no statistics"):
        calibration.save("nowhere")


def test_an_error_within_a_call_drops_what_only_some_layers_saw():
    model, (a, b, c, _, _) = Attention(), inputs()
    before = everything_on(model)
    watch = Capture(model)
    with watch.hooks():
        model(a)
    with pytest.raises(RuntimeError), watch.hooks():
        model(b, key=torch.randn(5, 5))
    assert everything_on(model) == before
    with watch.hooks():
        model(c)
    calibration = watch.finish()
    assert "ended in RuntimeError: statistics are partial" in calibration.notes[0]
    assert tokens_of(calibration.record("query")) == as_tokens(a, c)
    assert calibration.shares("query") == ("query", "key", "value")


def test_statistics_are_not_to_be_had_before_the_block_is_left():
    model = Attention()
    with capture(model) as calibration:
        model(inputs()[0])
        calibration.settings["steps"] = 12
        with pytest.raises(RoundsmithError, match="not over"):
            calibration.record("query")
    assert calibration.record("query").count == 40
    assert calibration.settings["steps"] == 12 and calibration.settings["seed"] == 0


def test_a_finished_capture_cannot_go_on():
    watch = Capture(Attention())
    watch.finish()
    with pytest.raises(RoundsmithError, match="over"), watch.hooks():
        pass


def test_layers_are_chosen_by_expression_or_name():
    model = nn.ModuleDict({"first": Attention(), "second": Attention()})
    with capture(model, layers=r"^first\.(key|out)$") as calibration:
        pass
    assert calibration.layers == ("first.key", "first.out")
    assert Capture(model, ["second.out"]).widths == {"second.out": 16}
    for layers, message in (
        ("(", "no regular expression"),
        ("third", "no linear layer that matches 'third'"),
        (["first.qeury"], "no linear layer 'first.qeury'"),
    ):
        with pytest.raises(RecipeError, match=message):
            Capture(model, layers)
    with pytest.raises(RecipeError, match="max_tokens"):
        Capture(model, max_tokens=0)


def test_how_much_slower_a_captured_call_was_is_reported():
    model = Attention(256)
    with capture(model) as calibration:
        for x in inputs(width=256):
            model(x)
    assert calibration.settings["calls"] == 5
    assert calibration.settings["slowdown"] > 1
    watch = Capture(model)
    with watch.hooks():
        model(inputs(width=256)[0])
    assert watch.finish().settings["slowdown"] > 1


def test_the_same_seed_keeps_the_same_tokens_and_a_file_keeps_what_memory_does(tmp_path):
    model, xs = Attention(), inputs(tokens=400)
    kept = []
    for seed, store in ((1, None), (1, tmp_path), (2, None)):
        with capture(model, max_tokens=300, seed=seed, store=store) as calibration:
            for x in xs:
                model(x)
        kept.append(calibration)
    first, stored, other = (c.record("query") for c in kept)
    assert torch.equal(first.tokens, stored.tokens)
    assert torch.equal(first.moment, stored.moment)
    assert torch.equal(kept[1].record("query").moment, stored.moment)
    assert not torch.equal(first.tokens, other.tokens)
    assert len(list(tmp_path.iterdir())) == 1
    del kept, calibration, stored
    gc.collect()
    assert list(tmp_path.iterdir()) == []
