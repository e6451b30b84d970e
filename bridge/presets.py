"""A person's own presets, in ComfyUI's user folder."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths

from ..converters.preset_files import load_presets, look_for_presets_in
from ..errors import RecipeError


def preset_names() -> list[str]:
    """Presets a person may choose, those of ``<user folder>/roundsmith/presets.json`` among them.

    A file that is not valid is an error when something is quantized; here it is only logged, so
    that the nodes are there.
    """
    look_for_presets_in(Path(folder_paths.get_user_directory()) / "roundsmith")
    try:
        return list(load_presets())
    except RecipeError as error:
        logging.warning("Roundsmith: %s", error)
        return list(load_presets(()))
