"""The mean error of a layer's outputs, taken off its bias."""

from __future__ import annotations

from torch import Tensor


def bias_correction(w: Tensor, w_hat: Tensor, mean: Tensor) -> Tensor:
    """What to add to a layer's bias so that its outputs are right on average: ``(W − Ŵ) μ``.

    Only worth it for a measured mean: real inputs' means are far from zero, those of random
    inputs are noise. (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and
    Bias Correction".)

    Args:
        w: float32 ``[M, N]``, the layer's weight.
        w_hat: float32 ``[M, N]``, its quantized weight decoded: unpadded, ConvRot undone.
        mean: float32 ``[N]``, mean of the layer's inputs, not rotated either.

    Returns:
        float32 ``[M]`` on the device of ``w``.

    Raises:
        ValueError: shapes that do not fit each other, or a mean that is NaN or Inf.
    """
    if w.shape != w_hat.shape or mean.shape != w.shape[1:]:
        raise ValueError(
            f"weight {tuple(w.shape)}, quantized weight {tuple(w_hat.shape)} and mean "
            f"{tuple(mean.shape)} do not fit each other"
        )
    if not bool(mean.isfinite().all()):
        raise ValueError("the mean holds NaN or Inf")
    return (w - w_hat) @ mean.to(w)
