"""The demo's trained model: a Flux that paints digits, its decoder, LoRA and text encoder."""

from pathlib import Path

MODEL_FILE = "roundsmith-demo-flux-digits.safetensors"
QUANTIZED_FILE = "roundsmith-demo-flux-digits-int8.safetensors"
MIXED_FILE = "roundsmith-demo-flux-digits-mixed.safetensors"
MXFP8_FILE = "roundsmith-demo-flux-digits-mxfp8.safetensors"
NVFP4_FILE = "roundsmith-demo-flux-digits-nvfp4.safetensors"
LEGACY_FILE = "roundsmith-demo-flux-digits-old-fp8_scaled.safetensors"
VAE_FILE = "roundsmith-demo-taesd.safetensors"
LORA_FILE = "roundsmith-demo-lora-pink.safetensors"
ERROR_LORA_FILE = "roundsmith-demo-lora-nvfp4-error.safetensors"
TEXT_ENCODER_FILE = "roundsmith-demo-clip-l-random.safetensors"
FOLDER = Path(__file__).parent
