"""Triton kernels and their launchers, one op family a file.

Importing a module of this folder needs Triton; only :mod:`..implementations` does, when a device
that can run them asks. Launchers take the arguments of the eager reference they are named after,
and a configuration of tile sizes, warps and stages.
"""
