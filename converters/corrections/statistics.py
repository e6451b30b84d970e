"""A calibration seen with the names of a file."""

from __future__ import annotations

import re

from ..calibration import Calibration, Fingerprint
from ..model import ModelView

_WRAPPER = re.compile(r"^[^.]+\.transformer\.")


def fitted(calibration: Calibration, model: ModelView) -> tuple[Calibration, list[str]]:
    """The part of a calibration that is about ``model``, and warnings about using it.

    Text encoders are captured inside a wrapper (``clip_l.transformer.``) that their files do not
    know.

    Raises:
        RoundsmithError: the statistics belong to another model.
    """
    own = set(Fingerprint.of_view(model).marks)
    wrappers = {m.group() for m in map(_WRAPPER.match, calibration.layers) if m}
    views = [calibration, *(calibration.under(w) for w in sorted(wrappers))]
    best = max(views, key=lambda view: len(own & view.fingerprint.marks.keys()))
    return best, best.check(Fingerprint.of_view(model))
