"""Older and sloppy checkpoints made into what today's loaders read; codes stay as they are."""

from .detect import detect
from .migrate import migrate_file
from .options import MigrateOptions

__all__ = ["MigrateOptions", "detect", "migrate_file"]
