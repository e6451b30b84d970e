"""Tests inside a real ComfyUI: in this process on a CPU, and through a server's HTTP API."""
