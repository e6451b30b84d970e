"""The pack on ComfyUI's canvas: its real frontend in headless Chromium, mouse and keyboard."""
