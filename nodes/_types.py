"""Types of the connections that only the pack's nodes have."""

from __future__ import annotations

from comfy_api.latest import io

Calibration = io.Custom("ROUNDSMITH_CALIBRATION")
"""What a model's layers are fed: :class:`roundsmith.converters.calibration.Calibration`."""

Capture = io.Custom("ROUNDSMITH_CAPTURE")
"""A recording in the making: :class:`roundsmith.bridge.recording.Recording`."""

Recipe = io.Custom("ROUNDSMITH_RECIPE")
"""Every setting of a conversion: :class:`roundsmith.converters.Recipe`."""

Rules = io.Custom("ROUNDSMITH_RULES")
"""Settings by layer, in order: a tuple of :class:`roundsmith.converters.Rule`."""
