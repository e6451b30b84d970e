"""ComfyUI nodes, one a file: schema, call, result. The work is in ``bridge`` and ``converters``."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .calibrate_sampler import CalibrateSampler
from .capture_activations import CaptureActivations
from .capture_clip import CaptureCLIP
from .compare_models import CompareModels
from .convert_legacy import ConvertLegacy
from .edit_metadata import EditMetadata
from .export_input_scales import ExportInputScales
from .extract_error_lora import ExtractErrorLora
from .extract_error_lora_file import ExtractErrorLoraFile
from .finish_capture import FinishCapture
from .fit_to_budget import FitToBudget
from .inspect_file import InspectFile
from .layer_rule import LayerRule
from .load_calibration import LoadCalibration
from .load_checkpoint import LoadCheckpoint
from .load_clip import LoadCLIP
from .load_diffusion_model import LoadDiffusionModel
from .load_recipe import LoadRecipe
from .make_hybrid import MakeHybrid
from .merge_calibrations import MergeCalibrations
from .plan_quantization import PlanQuantization
from .quantization_recipe import QuantizationRecipe
from .quantize_clip import QuantizeCLIP
from .quantize_file import QuantizeFile
from .quantize_model import QuantizeModel
from .save_calibration import SaveCalibration
from .save_checkpoint import SaveCheckpoint
from .save_clip import SaveCLIP
from .save_model import SaveModel
from .set_input_scales import SetInputScales

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadDiffusionModel,
    LoadCLIP,
    LoadCheckpoint,
    QuantizeModel,
    QuantizeCLIP,
    QuantizeFile,
    PlanQuantization,
    QuantizationRecipe,
    LayerRule,
    LoadRecipe,
    FitToBudget,
    CalibrateSampler,
    CaptureActivations,
    CaptureCLIP,
    FinishCapture,
    MergeCalibrations,
    SaveCalibration,
    LoadCalibration,
    CompareModels,
    ExtractErrorLora,
    SaveModel,
    SaveCLIP,
    SaveCheckpoint,
    InspectFile,
    EditMetadata,
    ConvertLegacy,
    SetInputScales,
    MakeHybrid,
    ExportInputScales,
    ExtractErrorLoraFile,
)


class RoundsmithExtension(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return list(NODES)


__all__ = ["NODES", "RoundsmithExtension"]
