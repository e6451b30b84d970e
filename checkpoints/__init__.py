"""Safetensors in and out: lazy reading, shards, atomic writing, quantized layers' metadata."""

from .header import read_header
from .placement import build_header, checkpoint_size
from .quantization import QuantizedLayers, decode_conf, encode_conf, layers_metadata, read_layers
from .reader import Checkpoint
from .tensors import DTYPES, Entry, TensorInfo
from .text import write_text
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
    "write_text",
]
