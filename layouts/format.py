"""The base of every format: grid × geometry × packing, and how it appears in a file.

A format's file declares its grid, geometry and packing; everything here follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import FormatError
from .candidates import Candidate
from .codec import decode, pad
from .geometries import Scales
from .grids import Grid
from .options import Bindable
from .spec import Encoded, Spec
from .transforms import DEFAULT_GROUP, GROUP_SIZES, rotate

if TYPE_CHECKING:  # comfy-kitchen brings torch's compiler along, seconds that a conversion can save
    from comfy_kitchen.tensor import QuantizedTensor

Parts = Mapping[str, Tensor]
Storage = dict[str, tuple[torch.dtype, tuple[int, ...]]]
FLOAT32_SCALE = "weight_scale"


class Format(Bindable):
    """One storage format of a linear layer's weight ``[M, N]`` (M outputs, N inputs).

    Its options are :class:`~.options.Bindable`'s.

    Attributes:
        title: the name for people.
        grid: the values a code can take.
        aliases: other names a person or a foreign file may use; a file's shapes decide.
        stock: ComfyUI's own loaders read it.
        stock_note: which of them read some of it, where not all do.
        hardware: where its products run without decoding, for the documentation.
        part_names: suffixes of the file tensors it may have.
        padding: rows and columns the stored matrix is padded to.
        layout_names: layouts of comfy-kitchen or ComfyUI that run it, preferred first.
        own_layout: the name of our layout that runs it, where those have none.
        search_pays: scale search without statistics is known to gain at least half a dB in outputs.
        input_max: where ComfyUI quantizes inputs under a fixed scale ``input_scale``, the grid's
            maximum that an input of that scale's range is mapped to; None elsewhere.
        candidates: the options worth considering where a format is chosen for a person, the best
            first; empty where another format is as small and always better.
        core_quantizes_input: ComfyUI quantizes inputs before the product where the device has one;
            other layouts do so themselves inside the product, or never.
    """

    title: ClassVar[str]
    grid: ClassVar[Grid]
    aliases: ClassVar[tuple[str, ...]] = ()
    stock: ClassVar[bool] = False
    stock_note: ClassVar[str] = ""
    hardware: ClassVar[str] = ""
    part_names: ClassVar[tuple[str, ...]] = ("weight", FLOAT32_SCALE, "input_scale")
    padding: ClassVar[tuple[int, int]] = (1, 1)
    layout_names: ClassVar[tuple[str, ...]] = ()
    own_layout: ClassVar[str | None] = None
    search_pays: ClassVar[bool] = False
    input_max: ClassVar[float | None] = None
    candidates: ClassVar[tuple[Candidate, ...]] = ()
    core_quantizes_input: ClassVar[bool] = False

    # ---- grid × geometry: what rounding sees -------------------------------------------------

    def grid_for(self, spec: Spec) -> Grid:
        """The grid under ``spec``; where layers have grids of their own, the one to start from."""
        return self.grid

    def own_grid(self, spec: Spec) -> bool:
        """Whether each layer stores a grid of its own under ``spec``: a codebook fitted to it."""
        return False

    def transform(self, w: Tensor, spec: Spec) -> Tensor:
        """Bring float32 ``w [M, N]`` into the domain that is rounded: rotate, then pad."""
        if spec.convrot:
            w = rotate(w, spec.convrot)
        return pad(w, *self.padding)

    def transform_inputs(self, x: Tensor, spec: Spec) -> Tensor:
        """Bring float32 inputs ``x [T, N]`` into the domain the transformed weights multiply."""
        if spec.convrot:
            x = rotate(x, spec.convrot)
        return pad(x, 1, self.padding[1])

    # ---- packing: what the file sees ---------------------------------------------------------

    def padded_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the codes of a matrix of ``shape``."""
        rows, cols = self.padding
        return -(-shape[0] // rows) * rows, -(-shape[1] // cols) * cols

    @property
    def plain(self) -> bool:
        """Whether a file keeps one code a weight, so that shapes may tell it from its likes."""
        return self.padding == (1, 1)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the stored codes."""
        return self.grid.dtype

    def packed_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the stored codes of a padded matrix."""
        return padded

    def storage(self, spec: Spec, shape: tuple[int, int]) -> Storage:
        """File tensors of a layer, by suffix: dtype and shape."""
        padded = self.padded_shape(shape)
        codes = (self.weight_dtype, self.packed_shape(spec, padded))
        return {"weight": codes, **self.scale_storage(spec, padded)}

    def has_json(self, conf: Mapping[str, Any]) -> bool:
        """Whether a file describes such a layer in ``comfy_quant``; else its tensors tell. A form
        that does without says so in ``conf["form"]``, which no file has."""
        return True

    def in_form(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """Normalised parts as files of the form ``conf["form"]`` hold them."""
        return dict(parts)

    def scale_storage(self, spec: Spec, padded: tuple[int, int]) -> Storage:
        """File tensors that hold the scales (and constants, and a grid), by suffix."""
        return {FLOAT32_SCALE: (torch.float32, self.scale_shape(spec, padded))}

    def scale_shape(self, spec: Spec, padded: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the stored ``weight_scale`` where it is plain float32."""
        return self.geometry(spec).grid_shape(padded)

    def packed_row(self, row: int, columns: int) -> int:
        """Row of the stored codes at which row ``row`` of a matrix begins."""
        return row

    def pack_codes(self, codes: Tensor, spec: Spec) -> Tensor:
        """Codes (or some of their rows) as stored."""
        return codes

    def unpack_codes(self, parts: Parts, conf: Mapping[str, Any]) -> Tensor:
        """Inverse of :meth:`pack_codes`, from normalised parts; they may be without values."""
        return parts["weight"]

    def stores_peak(self, spec: Spec) -> bool:
        """Whether :meth:`pack_scales` needs ``Scales.peak``."""
        return False

    def pack_grid(self, grid: Grid) -> dict[str, Tensor]:
        """A layer's own grid as stored, by suffix."""
        return {}

    def grid_of(self, parts: Parts, conf: Mapping[str, Any]) -> Grid:
        """The grid of a stored layer, from normalised parts."""
        return self.grid

    def pack_scales(self, scales: Scales, spec: Spec, padded: tuple[int, int]) -> dict[str, Tensor]:
        """Scales of the whole matrix as stored, by suffix."""
        return {FLOAT32_SCALE: scales.block.reshape(self.scale_shape(spec, padded))}

    def unpack_scales(self, parts: Parts, padded: tuple[int, int]) -> Scales:
        """Inverse of :meth:`pack_scales`, from normalised parts."""
        scale = parts[FLOAT32_SCALE].to(torch.float32)
        if scale.ndim == 1 and scale.numel() == padded[0]:
            return Scales(scale[:, None])
        return Scales(scale.reshape(scale.shape[:2] if scale.ndim > 1 else (1, 1)))

    def conf(self, spec: Spec, shape: tuple[int, int]) -> dict[str, Any]:
        """The layer's flat JSON."""
        conf: dict[str, Any] = {"format": self.id}
        if spec.group_size is not None:
            conf["group_size"] = spec.group_size
        if self.padded_shape(shape) != tuple(shape):
            conf["orig_shape"] = list(shape)
        if spec.full_precision_matrix_mult:
            conf["full_precision_matrix_mult"] = True
        return conf

    # ---- reading -----------------------------------------------------------------------------

    def matches(self, conf: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether stored tensors of these shapes are of this format."""
        raise NotImplementedError

    def foreign(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """Layers of this format among a file's tensors as another library keeps them, without JSON:
        for each, the names of its parts by suffix."""
        return {}

    def foreign_conf(
        self, parts: Mapping[str, str], read: Callable[[str], Tensor]
    ) -> dict[str, Any]:
        """The JSON a :meth:`foreign` layer should have; ``read`` reads a tensor by its name."""
        return {"format": self.id}

    def variant_of(
        self, shapes: Mapping[str, tuple[int, ...]], conf: Mapping[str, Any]
    ) -> str | None:
        """Which variant a stored layer is, where variants are stored unlike; else None."""
        return None

    def group_size_of(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """The block size that stored shapes tell, where the format has one."""
        return shapes["weight"][1] // shapes[FLOAT32_SCALE][1] if self.group_sizes else None

    def normalise(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Tensor]:
        """Repair known deviations of foreign files (shapes, dtypes of scales), losing nothing."""
        return dict(parts)

    def orig_shape(self, parts: Parts, conf: Mapping[str, Any]) -> tuple[int, int]:
        """Shape of the layer's weight: ``orig_shape`` of the JSON where valid, else the codes'."""
        padded = tuple(self.unpack_codes(parts, conf).shape)
        shape = conf.get("orig_shape")
        if isinstance(shape, list) and len(shape) == 2 and all(type(x) is int for x in shape):
            m, n = shape
            if self.padded_shape((m, n)) == padded:
                return m, n
        return padded[0], padded[1]

    def convrot_of(self, conf: Mapping[str, Any]) -> int | None:
        """ConvRot group size of a layer's JSON."""
        return self._group_in(conf) if self.always_rotates else None

    def _group_in(self, conf: Mapping[str, Any]) -> int:
        group = conf.get("convrot_groupsize", DEFAULT_GROUP)
        if group not in GROUP_SIZES:
            raise FormatError(
                f"{self.id}: ConvRot group size {group!r} is not one of {GROUP_SIZES}; no runtime "
                "rotates activations by it. Convert the original model again."
            )
        return int(group)

    def _check_group(self, features: int, conf: Mapping[str, Any]) -> None:
        """Raise :class:`FormatError` where a stored layer cannot be rotated as it says."""
        group = self.convrot_of(conf)
        if group is not None and features % group:
            raise FormatError(
                f"{self.id}: ConvRot group size {group} does not divide the {features} inputs; "
                "the file is damaged"
            )

    def unpack(self, parts: Parts, conf: Mapping[str, Any]) -> Encoded:
        """Codes, scales and grid of stored tensors."""
        parts = self.normalise(parts, conf)
        codes = self.unpack_codes(parts, conf)
        scales = self.unpack_scales(parts, (codes.shape[0], codes.shape[1]))
        return Encoded(codes, scales, self.grid_of(parts, conf))

    def decode(
        self, parts: Parts, conf: Mapping[str, Any], shape: tuple[int, int] | None = None
    ) -> Tensor:
        """The layer's weight, float32 ``[M, N]``, rotated and cropped back."""
        codes, scales, grid = self.unpack(parts, conf)
        m, n = shape or self.orig_shape(parts, conf)
        w = decode(codes, grid, scales)[:m, :n].contiguous()
        group = self.convrot_of(conf)
        return rotate(w, group) if group else w

    @property
    def layout(self) -> str:
        """The registered QuantizedTensor layout that runs this format."""
        from comfy_kitchen.tensor.base import LAYOUTS

        for name in self.layout_names:
            if name in LAYOUTS:
                return name
        if self.own_layout is not None:
            from .scaled_tensor import register_scaled_layout

            return register_scaled_layout(self.own_layout, self.grid)
        raise FormatError(
            f"{self.id}: the installed comfy-kitchen has none of the layouts "
            f"{', '.join(self.layout_names)}; update comfy-kitchen"
        )

    def layout_for(self, parts: Parts, conf: Mapping[str, Any]) -> str:
        """The registered layout that runs a stored layer, from normalised parts."""
        return self.layout

    def read(
        self,
        parts: Parts,
        conf: Mapping[str, Any],
        shape: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> QuantizedTensor:
        """Wrap stored tensors as a tensor of ``shape`` and ``dtype`` that runs at once."""
        from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

        from .traced import trace_whole

        parts = self.normalise(parts, conf)
        layout = trace_whole(self.layout_for(parts, conf))
        params = get_layout_class(layout).Params(
            **self.layout_params(parts, conf),
            orig_dtype=dtype,
            orig_shape=tuple(shape or self.orig_shape(parts, conf)),
        )
        return QuantizedTensor(parts["weight"].contiguous(), layout, params)

    def parts_of(self, weight: QuantizedTensor) -> dict[str, Tensor]:
        """The file tensors of a running weight, by suffix: the inverse of :meth:`read`."""
        return {f"weight{suffix}": tensor for suffix, tensor in weight.state_dict().items()}

    def layout_params(self, parts: Parts, conf: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the layout's ``Params`` besides dtype and shape."""
        return {"scale": parts[FLOAT32_SCALE]}
