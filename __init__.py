"""Roundsmith: quantize diffusion models and text encoders, and run the result at once.

The folder is a ComfyUI node pack and the Python package ``roundsmith``. Importing it costs nothing:
the public names below load on first use, and ComfyUI is needed only by ``nodes`` and ``bridge``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .converters import (
        Plan,
        Recipe,
        Report,
        load_file,
        plan_file,
        quantize_file,
        quantize_module,
    )
    from .converters.calibration import Calibration
    from .converters.calibration.capture import capture
    from .converters.calibration.influence import measure_influences
    from .converters.comparing import Comparison, compare, compare_files
    from .converters.corrections import ErrorLoraOptions, error_lora_file
    from .converters.corrections.calibrate_file import calibrate_file
    from .errors import RoundsmithError

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"

_PUBLIC = {
    "Calibration": ".converters.calibration",
    "Comparison": ".converters.comparing",
    "ErrorLoraOptions": ".converters.corrections",
    "Plan": ".converters",
    "Recipe": ".converters",
    "Report": ".converters",
    "RoundsmithError": ".errors",
    "calibrate_file": ".converters.corrections",
    "capture": ".converters.calibration",
    "compare": ".converters.comparing",
    "compare_files": ".converters.comparing",
    "error_lora_file": ".converters.corrections",
    "load_file": ".converters",
    "measure_influences": ".converters.calibration",
    "plan_file": ".converters",
    "quantize_file": ".converters",
    "quantize_module": ".converters",
}
__all__ = [
    "Calibration",
    "Comparison",
    "ErrorLoraOptions",
    "Plan",
    "Recipe",
    "Report",
    "RoundsmithError",
    "calibrate_file",
    "capture",
    "compare",
    "compare_files",
    "error_lora_file",
    "load_file",
    "measure_influences",
    "plan_file",
    "quantize_file",
    "quantize_module",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


async def comfy_entrypoint() -> Any:
    """Return ComfyUI's extension object; called by ComfyUI when it loads the pack."""
    server = import_module("server").PromptServer
    if getattr(server, "instance", None) is not None:  # no server in a test of the nodes alone
        ours = import_module(".bridge.routes", __name__)
        planning = import_module(".nodes._planning", __name__).ROUTES
        ours.add_routes(server.instance.routes, *planning)
        server.instance.app.on_response_prepare.append(ours.revalidate)
    return import_module(".nodes", __name__).RoundsmithExtension()
