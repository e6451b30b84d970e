"""The options of a format: what a person may ask of it, bound to a spec and fitted to a shape."""

from __future__ import annotations

from typing import Any, ClassVar

from ..errors import FormatError
from .geometries import Geometry
from .spec import Fit, Spec
from .transforms import DEFAULT_GROUP, GROUP_SIZES, largest_group


class Bindable:
    """What formats declare of their options.

    Attributes:
        id: the name in the layer's JSON.
        scalings: the values of ``Spec.scaling`` it takes; empty where it has no choice.
        group_sizes: legal block sizes, the default first; empty where it has none.
        variants: the values of ``Spec.variant`` it takes, the default first; empty where it has no
            choice.
        forms: ways in which files say the same, the default first; empty where there is one.
        rotates: takes ConvRot.
        always_rotates: is always rotated: by the group asked for or 256, else by the largest that
            divides the inputs.
    """

    id: ClassVar[str]
    scalings: ClassVar[tuple[str, ...]] = ()
    group_sizes: ClassVar[tuple[int, ...]] = ()
    variants: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[tuple[str, ...]] = ()
    rotates: ClassVar[bool] = False
    always_rotates: ClassVar[bool] = False

    def geometry(self, spec: Spec) -> Geometry:
        """Which weights share a scale under ``spec``."""
        raise NotImplementedError

    def fit(self, spec: Spec, shape: tuple[int, ...]) -> Fit:
        """Adapt ``spec`` to a tensor of ``shape``, or say why the tensor is kept as it is."""
        if len(shape) != 2:
            return Fit(None, f"{len(shape)}-D tensor, not a matrix")
        if 0 in shape:
            return Fit(None, "empty tensor")
        notes: list[str] = []
        fitted = self._fit_blocks(spec, (shape[0], shape[1]), notes)
        if fitted is not None and self.always_rotates:
            fitted = self._fit_rotation(fitted, (shape[0], shape[1]), notes)
        elif fitted is not None and fitted.convrot and shape[1] % fitted.convrot:
            notes.append(f"ConvRot {fitted.convrot} does not divide {shape[1]} inputs: unrotated")
            fitted = self.replace(fitted, convrot=None)
        return Fit(fitted, "; ".join(notes))

    def _fit_blocks(self, spec: Spec, shape: tuple[int, int], notes: list[str]) -> Spec | None:
        if spec.group_size is None:
            return spec
        smaller = sorted((g for g in self.group_sizes if g <= spec.group_size), reverse=True)
        for size in dict.fromkeys((spec.group_size, *smaller)):
            tried = self.replace(spec, group_size=size)
            rows, cols = self.geometry(tried).block(shape)
            if shape[0] % rows == 0 and shape[1] % cols == 0:
                if size != spec.group_size:
                    notes.append(f"block {size}: {spec.group_size} does not divide {shape}")
                return tried
        notes.append(f"no legal block size {self.group_sizes} divides {shape}")
        return None

    def _fit_rotation(self, spec: Spec, shape: tuple[int, int], notes: list[str]) -> Spec | None:
        """The group asked for, else the largest that divides the inputs."""
        asked = spec.convrot or DEFAULT_GROUP
        legal = (asked, *sorted(GROUP_SIZES, reverse=True))
        group = next((g for g in legal if shape[1] % g == 0), None)
        if group is None:
            notes.append(f"no ConvRot group {GROUP_SIZES} divides the inputs of {shape}")
            return None
        if group != asked:
            notes.append(f"ConvRot {group}: {asked} does not divide the inputs of {shape}")
        return self.replace(spec, convrot=group)

    @staticmethod
    def replace(spec: Spec, **changes: Any) -> Spec:
        """A copy of ``spec`` with some fields changed."""
        return Spec(**{**spec.__dict__, **changes})

    def bind(
        self,
        *,
        scaling: str | None = None,
        group_size: int | None = None,
        convrot: int | str | None = None,
        features: int | None = None,
        full_precision_matrix_mult: bool = False,
        variant: str | None = None,
        form: str | None = None,
    ) -> Spec:
        """Make a spec of this format from what a person asked for, filling in its defaults.

        ``convrot="auto"`` takes the largest group dividing ``features`` inputs; where the format is
        always rotated, 256. Raises :class:`FormatError` for an option the format does not have.
        """
        if variant is not None and variant not in self.variants:
            raise self._no_option("variant", variant, self.variants)
        if form is not None and form not in self.forms:
            raise self._no_option("form", form, self.forms)
        if scaling is not None and scaling not in self.scalings:
            raise self._no_option("scaling", scaling, self.scalings)
        if group_size is not None and not self.group_sizes:
            raise self._no_option("group_size", group_size, ())
        if group_size is not None and group_size not in self.group_sizes:
            raise self._no_option("group_size", group_size, self.group_sizes)
        if convrot is not None and not self.rotates:
            raise self._no_option("convrot", convrot, ())
        if self.always_rotates and convrot in (None, "auto"):
            convrot = DEFAULT_GROUP
        if convrot == "auto":
            convrot = largest_group(features or 0)
        if convrot is not None and convrot not in GROUP_SIZES:
            raise self._no_option("convrot", convrot, ("auto", *GROUP_SIZES))
        if convrot is not None and self.scalings and scaling != "row":
            if scaling == "tensor":
                raise FormatError(f"{self.id}: ConvRot needs scaling 'row', not 'tensor'")
            scaling = "row"
        return Spec(
            self.id,
            scaling or (self.scalings[0] if self.scalings else None),
            group_size or (self.group_sizes[0] if self.group_sizes else None),
            int(convrot) if convrot is not None else None,
            full_precision_matrix_mult,
            variant or (self.variants[0] if self.variants else None),
            form or (self.forms[0] if self.forms else None),
        )

    def _no_option(self, name: str, value: object, legal: tuple[object, ...]) -> FormatError:
        choices = f"; it takes {', '.join(map(str, legal))}" if legal else "; leave it out"
        return FormatError(f"{self.id} has no {name} {value!r}{choices}")
