"""The demo's trained model: a compact Flux that paints digits, its decoder and its text encoder."""

from pathlib import Path

MODEL_FILE = "roundsmith-demo-flux-digits.safetensors"
QUANTIZED_FILE = "roundsmith-demo-flux-digits-int8.safetensors"
VAE_FILE = "roundsmith-demo-taesd.safetensors"
TEXT_ENCODER_FILE = "roundsmith-demo-clip-l-random.safetensors"
FOLDER = Path(__file__).parent
