"""The example workflows, from left to right as a person reads them."""

from __future__ import annotations

from roundsmith.tests.models import (
    ERROR_LORA_FILE,
    LEGACY_FILE,
    LORA_FILE,
    MIXED_FILE,
    MODEL_FILE,
    MXFP8_FILE,
    NVFP4_FILE,
    TEXT_ENCODER_FILE,
    VAE_FILE,
)

from .graph import Column, Node, Template, note

SOURCE = "diffusion_models/"
SAMPLED = {"steps": 12, "cfg": 1.0, "scheduler": "simple"}

UNET = Node("unet", "UNETLoader", widgets={"unet_name": MODEL_FILE})
CLIP_WIDGETS = {"clip_name": TEXT_ENCODER_FILE, "type": "stable_diffusion"}
CLIP = Node("clip", "CLIPLoader", widgets=CLIP_WIDGETS)
VAE = Node("vae", "VAELoader", widgets={"vae_name": VAE_FILE})
NEGATIVE = Node("negative", "ConditioningZeroOut", {"conditioning": "positive"})
EMPTY = Node("empty", "EmptySD3LatentImage", widgets={"width": 64, "height": 64})
CONDITIONS = {"positive": "positive", "negative": "negative", "latent_image": "empty"}
DECODE = Node("decode", "VAEDecode", {"samples": "sampler", "vae": "vae"})
BIGGER = {"upscale_method": "lanczos", "scale_by": 6.0}
SCALE = Node("bigger", "ImageScaleBy", {"image": "decode"}, BIGGER)
SAVED = {"filename_prefix": "roundsmith"}
SAVE = Node("save", "SaveImage", {"images": "bigger"}, SAVED, height=470)


def prompt(digit: str, clip: str = "clip") -> Node:
    """The prompt for a digit."""
    text = {"text": f"a handwritten {digit}"}
    return Node("positive", "CLIPTextEncode", {"clip": clip}, text, "Prompt", 130)


def sampler(model: str) -> Node:
    """A KSampler of this model."""
    widgets = {"seed": 7, "control_after_generate": "fixed", **SAMPLED}
    return Node("sampler", "KSampler", {"model": model, **CONDITIONS}, widgets)


def calibrate(seeds: int) -> Node:
    """The node that records what the layers see."""
    widgets = {"seed": 100, "seeds": seeds, **SAMPLED}
    links = {"model": "unet", **CONDITIONS}
    return Node("calibrate", "RoundsmithCalibrateSampler", links, widgets, height=500)


def compare(key: str, quantized: str, title: str, least: float, reference: str = "unet") -> Node:
    """A comparison of the original with a model, on a seed that was not calibrated on."""
    links = {"reference": reference, "quantized": quantized, **CONDITIONS, "vae": "vae"}
    widgets = {"seed": 7, "min_snr": least, **SAMPLED}
    return Node(key, "RoundsmithCompareModels", links, widgets, title, 800)


def inspect(file: str) -> Node:
    """What is in a file of the demo's."""
    widgets = {"source": SOURCE + file}
    return Node("inspect", "RoundsmithInspectFile", widgets=widgets, height=360)


def chart(source: str, title: str, height: int = 420) -> Node:
    """What a node draws, in full."""
    return Node(f"{title} chart", "PreviewImage", {"images": source}, title=title, height=height)


QUANTIZE_AND_SAMPLE = Template(
    "quantize-and-sample",
    (
        Column(380, (note("quantize-and-sample"),)),
        Column(340, (UNET, CLIP, VAE)),
        Column(340, (Node("quantize", "RoundsmithQuantizeModel", {"model": "unet"}, height=610),)),
        Column(340, (prompt("three"), NEGATIVE, EMPTY)),
        Column(320, (sampler("quantize"), DECODE)),
        Column(380, (SCALE, SAVE)),
    ),
    ("quantize", "save"),
)

CALIBRATE_QUANTIZE_COMPARE = Template(
    "calibrate-quantize-compare",
    (
        Column(380, (
            note("calibrate-quantize-compare"),
            UNET, CLIP, VAE,
        )),
        Column(300, (prompt("three"), NEGATIVE, EMPTY)),
        Column(370, (
            calibrate(4),
            Node("quantize", "RoundsmithQuantizeModel",
                 {"model": "unet", "calibration": "calibrate"}, height=590),
        )),
        Column(330, (sampler("quantize"), DECODE, SCALE, SAVE)),
        Column(520, (
            compare("compare", "quantize", "", 30.0),
            Node("keep", "RoundsmithSaveModel", {"model": "compare"}, height=150),
        )),
        Column(640, (chart("compare.2", "Worst layers", 700),)),
    ),
    ("compare",),
)

LOAD_MIXED_FORMATS = Template(
    "load-mixed-formats",
    (
        Column(380, (note("load-mixed-formats"),)),
        Column(400, (
            Node("model", "RoundsmithLoadDiffusionModel", widgets={"unet_name": MIXED_FILE}),
            CLIP, VAE,
            inspect(MIXED_FILE),
        )),
        Column(340, (prompt("zero"), NEGATIVE, EMPTY)),
        Column(320, (sampler("model"), DECODE, SCALE)),
        Column(380, (SAVE,)),
        Column(640, (chart("inspect.2", "What the file holds", 560),)),
    ),
    ("save", "What the file holds chart"),
)

QUANTIZE_TEXT_ENCODER = Template(
    "quantize-text-encoder",
    (
        Column(380, (note("quantize-text-encoder"),)),
        Column(340, (CLIP, UNET, VAE)),
        Column(360, (
            Node("quantize", "RoundsmithQuantizeCLIP", {"clip": "clip"}, height=610),
            Node("keep", "RoundsmithSaveCLIP", {"clip": "quantize"}, height=150),
        )),
        Column(340, (prompt("five", "quantize"), NEGATIVE, EMPTY)),
        Column(320, (sampler("unet"), DECODE)),
        Column(380, (SCALE, SAVE)),
    ),
    ("quantize", "save"),
)

BAKE_LORAS_AND_QUANTIZE = Template(
    "bake-loras-and-quantize",
    (
        Column(380, (note("bake-loras-and-quantize"),)),
        Column(360, (
            UNET,
            Node("lora", "LoraLoaderModelOnly", {"model": "unet"}, {"lora_name": LORA_FILE}),
            CLIP, VAE,
        )),
        Column(360, (
            Node("quantize", "RoundsmithQuantizeModel", {"model": "lora"}, height=610),
            Node("keep", "RoundsmithSaveModel", {"model": "quantize"},
                 {"filename_prefix": "diffusion_models/roundsmith-with-lora"}, height=150),
        )),
        Column(340, (prompt("seven"), NEGATIVE, EMPTY)),
        Column(320, (sampler("quantize"), DECODE)),
        Column(380, (SCALE, SAVE)),
    ),
    ("quantize", "save"),
)

PLAN_TO_A_BUDGET = Template(
    "plan-to-a-budget",
    (
        Column(380, (
            note("plan-to-a-budget"),
            UNET, CLIP, VAE,
        )),
        Column(340, (prompt("two"), NEGATIVE, EMPTY)),
        Column(380, (
            calibrate(2),
            Node("budget", "RoundsmithFitToBudget", {"calibration": "calibrate"},
                 {"source": SOURCE + MODEL_FILE, "target": "bits a weight", "target.bits": 6.0},
                 height=440),
        )),
        Column(380, (
            Node("quantize", "RoundsmithQuantizeModel",
                 {"model": "unet", "calibration": "calibrate", "recipe": "budget"}, height=590),
            Node("plan", "RoundsmithPlanQuantization", {"recipe": "budget"},
                 {"source": SOURCE + MODEL_FILE}, height=560),
        )),
        Column(320, (sampler("quantize"), DECODE)),
        Column(380, (SCALE, SAVE)),
        Column(560, (chart("budget.2", "Size against quality", 480),)),
    ),
    ("save", "Size against quality chart"),
)

REPAIR_OLD_CHECKPOINT = Template(
    "repair-and-convert-an-old-checkpoint",
    (
        Column(380, (note("repair-and-convert-an-old-checkpoint"),)),
        Column(460, (inspect(LEGACY_FILE),)),
        Column(460, (
            Node("convert", "RoundsmithConvertLegacy",
                 widgets={"source": SOURCE + LEGACY_FILE, "overwrite": True}, height=600),
        )),
        Column(360, (
            Node("model", "RoundsmithLoadDiffusionModel", widgets={"unet_name": LEGACY_FILE}),
            CLIP, VAE,
        )),
        Column(340, (prompt("six"), NEGATIVE, EMPTY)),
        Column(320, (sampler("model"), DECODE)),
        Column(380, (SCALE, SAVE)),
    ),
    ("convert", "save"),
)

MAKE_HYBRID_MXFP8 = Template(
    "make-hybrid-mxfp8",
    (
        Column(380, (note("make-hybrid-mxfp8"),)),
        Column(440, (
            Node("hybrid", "RoundsmithMakeHybrid",
                 widgets={"source": SOURCE + MXFP8_FILE, "overwrite": True}, height=520),
        )),
        Column(360, (
            Node("model", "RoundsmithLoadDiffusionModel", widgets={"unet_name": MXFP8_FILE}),
            CLIP, VAE,
        )),
        Column(340, (prompt("two"), NEGATIVE, EMPTY)),
        Column(320, (sampler("model"), DECODE)),
        Column(380, (SCALE, SAVE)),
    ),
    ("hybrid", "save"),
)

ERROR_LORA = Template(
    "error-lora",
    (
        Column(380, (
            note("error-lora"),
            UNET,
            Node("model", "RoundsmithLoadDiffusionModel", widgets={"unet_name": NVFP4_FILE}),
            CLIP, VAE,
        )),
        Column(340, (prompt("six"), NEGATIVE, EMPTY)),
        Column(380, (
            calibrate(2),
            Node("extract", "RoundsmithExtractErrorLora",
                 {"original": "unet", "quantized": "model", "calibration": "calibrate"},
                 {"filename_prefix": "loras/roundsmith-error"}, height=460),
            Node("lora", "LoraLoaderBypassModelOnly", {"model": "model"},
                 {"lora_name": ERROR_LORA_FILE}),
        )),
        Column(480, (compare("without", "model", "Compare: NVFP4 alone", 0.0),)),
        Column(480, (compare("with", "lora", "Compare: NVFP4 and the error LoRA", 0.0),)),
        Column(380, (
            Node("bigger", "ImageScaleBy", {"image": "with.1"}, {**BIGGER, "scale_by": 2.0}),
            SAVE,
        )),
    ),
    ("with",),
)

TEMPLATES = (
    QUANTIZE_AND_SAMPLE,
    CALIBRATE_QUANTIZE_COMPARE,
    LOAD_MIXED_FORMATS,
    QUANTIZE_TEXT_ENCODER,
    BAKE_LORAS_AND_QUANTIZE,
    PLAN_TO_A_BUDGET,
    REPAIR_OLD_CHECKPOINT,
    MAKE_HYBRID_MXFP8,
    ERROR_LORA,
)
