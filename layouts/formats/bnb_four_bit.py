"""bitsandbytes' four-bit formats: ``bnb_nf4``, ``bnb_fp4`` and ``bnb_af4``.

Storage of a layer ``L`` with weight ``[M, N]`` and block size ``b``, in the comfy_quant form::

    L.weight   U8   [⌈M·N/2⌉]   two codes a byte over the row-major weight, the even element in the
                                high nibble
    L.absmax   F32  [⌈M·N/b⌉]   one scale a block of consecutive weights; the last may be shorter

with ``group_size``, ``quant_type``, ``dtype``, ``shape`` and ``quant_map`` in the JSON; and in the
bitsandbytes form, which has no JSON::

    L.weight                                   U8   [⌈M·N/2⌉, 1]
    L.weight.absmax                            F32  [⌈M·N/b⌉]
    L.weight.quant_map                         F32  [16]
    L.weight.quant_state.bitsandbytes__nf4     U8   JSON: quant_type, blocksize, dtype, shape

Forward: ``W = quant_map[code] · absmax``. Files of bitsandbytes may quantize ``absmax`` once more
(``nested_absmax``, ``nested_quant_map``) and keep codes under another dtype than U8: read, never
written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...errors import FormatError
from ...kernels import dequantize_4bit
from ..bitsandbytes import AF4, FP4, NF4, read_absmax, read_state
from ..candidates import Candidate
from ..format import Format, Parts, Storage
from ..geometries import ABSMAX_SCALES, Geometry, Scales
from ..grids import CodebookGrid, Grid
from ..packing import flat_cells, flat_scales, pack_flat, unpack_flat
from ..spec import Encoded, Spec

if TYPE_CHECKING:
    from comfy_kitchen.tensor import QuantizedTensor

_STATE = ".weight.quant_state.bitsandbytes__"
_DTYPE = "bfloat16"  # what readers of these files decode to
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


class _BnbFourBit(Format):
    forms = ("comfy_quant", "bitsandbytes")
    group_sizes: ClassVar[tuple[int, ...]] = (64, 128)
    hardware = "every GPU and CPU: decoded as it is multiplied"
    part_names = ("weight", "absmax")
    quant_type: ClassVar[str]

    # ---- grid × geometry

    def geometry(self, spec: Spec) -> Geometry:
        return Geometry.in_order(spec.group_size or 64, ABSMAX_SCALES)

    # ---- packing

    @property
    def plain(self) -> bool:
        return False

    def packed_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        count = -(-padded[0] * padded[1] // 2)
        return (count, 1) if spec.form == "bitsandbytes" else (count,)

    def packed_row(self, row: int, columns: int) -> int:
        return row * columns // 2  # rows are packed a whole number of blocks at a time

    def pack_codes(self, codes: Tensor, spec: Spec) -> Tensor:
        packed = pack_flat(codes)
        return packed[:, None] if spec.form == "bitsandbytes" else packed

    def unpack_codes(self, parts: Parts, conf: Mapping[str, Any]) -> Tensor:
        return unpack_flat(parts["weight"], self.orig_shape(parts, conf))

    def has_json(self, conf: Mapping[str, Any]) -> bool:
        return conf.get("form") != "bitsandbytes"

    def in_form(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.has_json(conf):
            return dict(parts)
        fields = self.layout_params(parts, conf)
        state = {
            "quant_type": self.quant_type,
            "blocksize": fields["group_size"],
            "dtype": conf.get("dtype", _DTYPE),
            "shape": list(self.orig_shape(parts, conf)),
        }
        text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        return {
            **{suffix: part for suffix, part in parts.items() if suffix != "absmax"},
            "weight": parts["weight"].view(-1, 1),
            "weight.absmax": parts["absmax"],
            "weight.quant_map": fields["codebook"],
            f"weight.quant_state.bitsandbytes__{self.quant_type}": text,
        }

    def scale_storage(self, spec: Spec, padded: tuple[int, int]) -> Storage:
        absmax = torch.empty(-(-padded[0] * padded[1] // self._size(spec)), device="meta")
        parts = self._scale_parts(absmax, spec, padded)
        return {suffix: (part.dtype, tuple(part.shape)) for suffix, part in parts.items()}

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        absmax = flat_scales(scales.block, self.geometry(spec), padded[1])
        return self._scale_parts(absmax, spec, padded)

    def _scale_parts(self, absmax: Tensor, spec: Spec, shape: tuple[int, int]) -> dict[str, Tensor]:
        codes = torch.empty(0, dtype=torch.uint8, device=absmax.device)
        parts = self.in_form({"weight": codes, "absmax": absmax}, self.conf(spec, shape))
        del parts["weight"]
        return parts

    def _size(self, spec: Spec) -> int:
        return spec.group_size or self.group_sizes[0]

    def conf(self, spec: Spec, shape: tuple[int, int]) -> dict[str, Any]:
        assert isinstance(self.grid, CodebookGrid)
        form = {} if spec.form in (None, self.forms[0]) else {"form": spec.form}
        return {
            **super().conf(spec, shape),
            **form,
            "quant_type": self.quant_type,
            "dtype": _DTYPE,
            "shape": list(shape),
            "quant_map": list(self.grid.values),
        }

    # ---- reading

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return len(shapes.get("absmax", ())) == 1 and 0 not in shapes["absmax"]

    def foreign(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        found = {}
        ending = _STATE + self.quant_type
        for name in names:
            layer = name.removesuffix(ending)
            if layer != name and f"{layer}.weight" in names:
                parts = {part: f"{layer}.weight.{part}" for part in _PARTS}
                parts = {part: full for part, full in parts.items() if full in names}
                found[layer] = {"weight": f"{layer}.weight", "quant_state": name, **parts}
        return found

    def foreign_conf(
        self, parts: Mapping[str, str], read: Callable[[str], Tensor]
    ) -> dict[str, Any]:
        state = read_state(read(parts["quant_state"]), parts["quant_state"])
        conf: dict[str, Any] = {
            "format": self.id,
            "form": "bitsandbytes",
            "group_size": state.get("blocksize"),
            "quant_type": self.quant_type,
            "dtype": state.get("dtype", _DTYPE),
            "shape": state.get("shape"),
        }
        if "quant_map" in parts:
            conf["quant_map"] = read(parts["quant_map"]).float().tolist()
        return conf

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """Both forms become the flat comfy_quant one; scales quantized once more are decoded."""
        found = {}
        for suffix, tensor in parts.items():
            found[suffix.removeprefix("weight.").partition(".")[0]] = tensor
        weight = found["weight"].reshape(-1)
        found["weight"] = weight if weight.dtype == torch.uint8 else weight.view(torch.uint8)
        found["absmax"] = read_absmax(found)
        m, n = self.orig_shape(found, conf)
        blocks = -(-m * n // self._group(found, conf))
        counted = (found["weight"].numel(), found["absmax"].numel())
        if counted != (-(-m * n // 2), blocks):
            raise FormatError(
                f"{self.id}: {counted[0]} bytes of codes and {counted[1]} scales are not those of "
                f"a weight {[m, n]} in blocks of {self._group(found, conf)}: a damaged file"
            )
        return {s: t for s, t in found.items() if s not in (*_PARTS[1:], "quant_state")}

    def orig_shape(self, parts: Parts, conf: Mapping[str, Any]) -> tuple[int, int]:
        shape = conf.get("shape", conf.get("orig_shape"))
        if not isinstance(shape, list) or len(shape) != 2 or any(type(x) is not int for x in shape):
            raise FormatError(
                f"{self.id}: the shape of the weight is {shape!r}, not two numbers; flat codes "
                "cannot be read without. Convert the original model again."
            )
        return shape[0], shape[1]

    def _group(self, parts: Parts, conf: Mapping[str, Any]) -> int:
        size = conf.get("group_size", conf.get("blocksize"))
        if type(size) is int and size > 0 and size % 2 == 0:
            return size
        each = -(-2 * parts["weight"].numel() // max(parts["absmax"].numel(), 1))
        return max(1 << (each - 1).bit_length(), 2)  # more than half a block, at most a whole one

    def group_size_of(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        sizes = {suffix: torch.empty(shape, device="meta") for suffix, shape in shapes.items()}
        return self._group(sizes, {})

    def grid_of(self, parts: Parts, conf: Mapping[str, Any]) -> Grid:
        table = conf.get("quant_map")
        if not isinstance(table, list) or len(table) != 16:
            return self.grid
        try:
            return CodebookGrid.of(self.grid.name, table, by_reciprocal=True)
        except (TypeError, ValueError) as error:
            raise FormatError(
                f"{self.id}: quant_map is no codebook ({error}); a damaged file"
            ) from error

    def unpack(self, parts: Parts, conf: Mapping[str, Any]) -> Encoded:
        parts = self.normalise(parts, conf)
        shape = self.orig_shape(parts, conf)
        geometry = Geometry.in_order(self._group(parts, conf), ABSMAX_SCALES)
        cells = flat_cells(parts["absmax"], geometry, shape)
        return Encoded(
            unpack_flat(parts["weight"], shape), Scales(cells), self.grid_of(parts, conf)
        )

    def decode(
        self, parts: Parts, conf: Mapping[str, Any], shape: tuple[int, int] | None = None
    ) -> Tensor:
        parts = self.normalise(parts, conf)
        fields = self.layout_params(parts, conf)
        return dequantize_4bit(
            *(parts["weight"], fields["scale"], fields["codebook"], fields["group_size"]),
            *(self.orig_shape(parts, conf), torch.float32),
        )

    @property
    def layout(self) -> str:
        from ..flat_tensor import register_flat_layout

        return register_flat_layout()

    def parts_of(self, weight: QuantizedTensor) -> dict[str, Tensor]:
        return {"weight": weight._qdata, "absmax": weight._params.scale}

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        grid = self.grid_of(parts, conf)
        assert isinstance(grid, CodebookGrid)
        return {
            "scale": parts["absmax"],
            "codebook": grid.tables(parts["absmax"].device).values.clone(),
            "group_size": self._group(parts, conf),
        }


class BnbNF4(_BnbFourBit):
    """NormalFloat4."""

    id = "bnb_nf4"
    candidates = (Candidate({}, 27.8, 27.8),)
    title = "NF4 (bitsandbytes)"
    aliases = ("nf4",)
    quant_type = "nf4"
    search_pays = True
    grid = CodebookGrid.of("nf4", NF4, by_reciprocal=True)


class BnbFP4(_BnbFourBit):
    """bitsandbytes' FP4."""

    id = "bnb_fp4"
    title = "FP4 (bitsandbytes)"
    quant_type = "fp4"
    grid = CodebookGrid.of("fp4", FP4, by_reciprocal=True)


class BnbAF4(_BnbFourBit):
    """AbnormalFloat4: least mean absolute error at a block of 64."""

    id = "bnb_af4"
    title = "AF4 (bitsandbytes)"
    aliases = ("af4",)
    group_sizes = (64,)
    quant_type = "af4"
    search_pays = True
    grid = CodebookGrid.of("af4", AF4, by_reciprocal=True)
