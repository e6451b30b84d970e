"""Safetensors in and out: lazy reading, shards, atomic writing, quantized layers' metadata."""

from .header import read_header
from .placement import build_header, checkpoint_size
from .quantization import (
    QuantizedLayers,
    conf_bytes,
    decode_conf,
    encode_conf,
    layers_metadata,
    parse_conf,
    read_conf,
    read_layers,
)
from .reader import Checkpoint
from .tensors import Entry, TensorInfo
from .text import write_text
from .writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "Entry",
    "QuantizedLayers",
    "TensorInfo",
    "build_header",
    "checkpoint_size",
    "conf_bytes",
    "decode_conf",
    "encode_conf",
    "layers_metadata",
    "parse_conf",
    "read_conf",
    "read_header",
    "read_layers",
    "write_text",
]
