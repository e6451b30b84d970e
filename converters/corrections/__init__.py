"""What is put right beside the codes: biases, input scales, the rank-r part of the error."""

from .bias import bias_correction
from .calibrate_file import CalibrateOptions, CalibrateReport, calibrate_file
from .error_lora import error_lora
from .error_lora_options import ErrorLoraOptions
from .export_scales import export_input_scales, save_input_scales
from .extract_error_lora import error_lora_file, extract_error_lora
from .input_scales import input_scale, read_input_scales

__all__ = [
    "CalibrateOptions",
    "CalibrateReport",
    "ErrorLoraOptions",
    "bias_correction",
    "calibrate_file",
    "error_lora",
    "error_lora_file",
    "export_input_scales",
    "extract_error_lora",
    "input_scale",
    "read_input_scales",
    "save_input_scales",
]
