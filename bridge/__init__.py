"""The seam to ComfyUI: the only package besides ``nodes`` that imports ``comfy``.

Loading, saving and quantizing ComfyUI's models, progress and cancelling, and checked paths.
Importing this package imports nothing of ComfyUI; its modules do.
"""
