"""The walk over the layers' hulls, against every possible choice."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from roundsmith.converters.choosing.hull import Option, hull, walk, within_bytes, within_error

options = st.lists(
    st.builds(Option, st.integers(1, 50), st.floats(0, 1, width=16)), min_size=1, max_size=4
)
models = st.lists(options, min_size=1, max_size=4)


def total(layers, chosen):
    picked = [some[i] for some, i in zip(layers, chosen, strict=True)]
    return sum(o.nbytes for o in picked), sum(o.error for o in picked)


def every(layers):
    for chosen in itertools.product(*(range(len(some)) for some in layers)):
        yield total(layers, chosen)


@given(options)
def test_no_choice_lies_below_the_hull(some):
    """Error as a function of size, linear between the hull's corners, is never above an option."""
    corners = [some[i] for i in hull(some)]
    assert corners[0].nbytes == min(o.nbytes for o in some)
    assert corners[-1].error == min(o.error for o in some)
    for a, b in itertools.pairwise(corners):
        assert a.nbytes < b.nbytes and a.error > b.error
        for o in some:
            if a.nbytes <= o.nbytes <= b.nbytes:
                share = (o.nbytes - a.nbytes) / (b.nbytes - a.nbytes)
                assert o.error >= a.error + share * (b.error - a.error) - 1e-9


@given(models)
def test_every_point_of_the_walk_is_optimal(layers):
    """No choice is both no larger and better."""
    start, steps = walk(layers)
    points = [total(layers, start), *((s.nbytes, s.error) for s in steps)]
    for nbytes, error in points:
        assert error <= min(e for n, e in every(layers) if n <= nbytes) + 1e-9


@given(models, st.integers(1, 200))
@settings(max_examples=200)
def test_within_bytes(layers, limit):
    """Fits where anything fits, at most one layer's jump away from the optimum."""
    chosen = within_bytes(layers, limit)
    fitting = [e for n, e in every(layers) if n <= limit]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        nbytes, error = total(layers, chosen)
        assert nbytes <= limit
        largest = max(max(o.error for o in some) - min(o.error for o in some) for some in layers)
        assert error <= min(fitting) + largest + 1e-9


@given(models, st.floats(0, 4))
@settings(max_examples=200)
def test_within_error(layers, limit):
    """Reaches the limit where it can be reached."""
    chosen = within_error(layers, limit)
    least = min(e for _, e in every(layers))
    if chosen is None:
        assert least > limit
    else:
        assert total(layers, chosen)[1] <= limit + 1e-9


@given(models, st.integers(1, 200), st.integers(0, 3))
def test_never_worse_than_another_choice_that_fits(layers, limit, option):
    other = [min(option, len(some) - 1) for some in layers]
    found = within_bytes(layers, limit, [other])
    nbytes, error = total(layers, other)
    if nbytes <= limit:
        assert found is not None
        assert total(layers, found)[0] <= limit
        assert total(layers, found)[1] <= error + 1e-9


def test_what_is_left_over_is_spent():
    """A step that does not fit does not keep later ones from being taken."""
    big = [Option(1, 1.0), Option(100, 0.0)]
    small = [Option(1, 0.001), Option(3, 0.0)]
    assert within_bytes([big, small], 10) == [0, 1]
