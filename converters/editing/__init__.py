"""Edits of what a checkpoint says of its quantized layers."""

from .edit import edit_file
from .options import EditOptions
from .values import parse_keys, parse_settings

__all__ = ["EditOptions", "edit_file", "parse_keys", "parse_settings"]
