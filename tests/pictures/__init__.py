"""The example workflows, their pictures and those of the help pages: made in a real browser.

``python -m roundsmith.tests.pictures`` writes them all, in about three minutes on two cores. It
needs ComfyUI, ``pip install playwright`` and Chromium; nothing else in the project does.
"""
