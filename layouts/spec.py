"""What one layer is stored as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .geometries import Scales
from .grids import Grid


@dataclass(frozen=True)
class Spec:
    """A format with its options bound.

    Attributes:
        format: the format's id, as written in the layer's JSON.
        scaling: ``"tensor"`` or ``"row"`` where the format has both, else None.
        group_size: block size where the format has one, else None.
        convrot: ConvRot group size, or None for no rotation.
        full_precision_matrix_mult: the runtime decodes the weight and multiplies in its own dtype.
        variant: which of the format's variants, where it has some, else None.
        form: how the file says it, where there are several ways, else None; the values are alike.
    """

    format: str
    scaling: str | None = None
    group_size: int | None = None
    convrot: int | None = None
    full_precision_matrix_mult: bool = False
    variant: str | None = None
    form: str | None = None

    def describe(self) -> str:
        """One short line: ``int8_tensorwise row convrot 256``."""
        parts = [self.format]
        if self.variant:
            parts.append(self.variant)
        if self.scaling:
            parts.append(self.scaling)
        if self.group_size:
            parts.append(f"block {self.group_size}")
        if self.convrot:
            parts.append(f"convrot {self.convrot}")
        if self.form:
            parts.append(f"in {self.form} form")
        if self.full_precision_matrix_mult:
            parts.append("full-precision matmul")
        return " ".join(parts)


class Fit(NamedTuple):
    """How a format takes a shape: the spec it gets (None: it is kept), and why if not as asked."""

    spec: Spec | None
    note: str = ""


class Encoded(NamedTuple):
    """A matrix as codes ``[Mp, Np]`` (one element a weight, padded), scales and the codes' grid."""

    codes: Tensor
    scales: Scales
    grid: Grid
