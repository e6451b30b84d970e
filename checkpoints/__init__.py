"""Safetensors in and out: lazy reading, shards, streaming atomic writing, the metadata of quantized layers."""

from .header import DTYPES, Entry, TensorInfo, build_header, checkpoint_size, read_header
from .quantization import (
    QuantizedLayers,
    decode_conf,
    encode_conf,
    layers_metadata,
    read_layers,
)
from .reader import Checkpoint
from .writer import CheckpointWriter

__all__ = [
    "DTYPES",
    "Checkpoint",
    "CheckpointWriter",
    "Entry",
    "QuantizedLayers",
    "TensorInfo",
    "build_header",
    "checkpoint_size",
    "decode_conf",
    "encode_conf",
    "layers_metadata",
    "read_header",
    "read_layers",
]
