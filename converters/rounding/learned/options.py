"""Settings of learned rounding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ....errors import RecipeError
from ...strict import Strict

ObjectiveName = Literal["auto", "svd", "activations"]
OptimizerName = Literal["original", "adamw", "radam", "prodigy"]
ScheduleName = Literal["exponential", "plateau", "adaptive"]

DEFAULT_LR = 8.0773e-3
PRODIGY_LR = 1.0


class LearnedOptions(Strict):
    """What is minimised, by what steps, and for how long. Immutable; bad values raise
    :class:`RecipeError` naming the setting.

    Learning rates are in steps of the grid: at 0.01 the optimizers move a weight by about a
    hundredth of the distance between two neighbouring codes an iteration, whatever the format.
    """

    objective: ObjectiveName = Field(
        "auto",
        description="'activations': the error of the layer's outputs on calibrated inputs; 'svd': "
        "the weight error seen by the weight's largest singular vectors, which needs no data but "
        "says nothing of which inputs occur; 'auto': activations where there are statistics, else "
        "svd.",
    )
    optimizer: OptimizerName = Field(
        "original",
        description="'original': unit-length gradient steps in the weights' own units; 'adamw'; "
        "'radam'; 'prodigy', which finds its own step size.",
    )
    iterations: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Gradient steps at most (4000 in some tools' newer files).",
    )
    lr: float | None = Field(
        None,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="Learning rate; None: 8.0773e-3, or 1.0 with prodigy.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Pull of adamw towards the unrounded weights, a share of the learning rate.",
    )

    flip_rounds: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="Rounds, once the gradient steps are over, in which the codes that promise "
        "most by the gradient move to the next value, as long as that lowers the objective. None: "
        "100 for activations, none for svd, where a lower objective costs real outputs more.",
    )

    # svd
    top_p: float = Field(
        0.2, gt=0, le=1, description="Singular vectors kept, as a share of the rank."
    )
    min_k: int = Field(256, ge=1, description="Singular vectors kept at least.")
    max_k: int = Field(
        1280, ge=1, description="Singular vectors kept at most (128 in some tools' older files)."
    )
    full_svd: bool = Field(
        False, description="Exact singular vectors instead of a seeded low-rank approximation."
    )

    # activations
    damping: float = Field(
        0.01,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Added to the diagonal of the inputs' second moment, as a share of its mean.",
    )

    # schedule
    schedule: ScheduleName = Field(
        "exponential", description="How the learning rate changes from step to step."
    )
    gamma: float = Field(0.99, gt=0, le=1, description="exponential: factor a step.")
    patience: int = Field(
        9, ge=0, description="plateau: steps without improvement before the rate is lowered."
    )
    factor: float = Field(0.92, gt=0, lt=1, description="plateau: what the rate is lowered by.")
    cooldown: int = Field(
        0, ge=0, description="plateau: steps after a lowering before the next one."
    )
    shape_influence: float = Field(
        1.0,
        ge=0,
        le=1,
        description="plateau: how far elongated matrices get more patience and weaker decay: "
        "0 not at all, 1 by the square root of their aspect ratio.",
    )
    lr_min: float = Field(
        1e-10, ge=0, description="exponential and plateau: the rate never falls below."
    )
    threshold: float = Field(
        0.0, ge=0, description="How much smaller a loss must be to count as an improvement."
    )
    threshold_mode: Literal["rel", "abs"] = Field(
        "rel", description="Whether the threshold is a share of the best loss, or absolute."
    )
    counter: Literal["simple-reset", "no-reset"] = Field(
        "simple-reset",
        description="adaptive: an improvement after a stall raises the rate by the first tier "
        "('simple-reset') or by the tier of the stall it ended ('no-reset').",
    )
    small_mult: float | None = Field(
        None,
        gt=0,
        le=2,
        description="adaptive: factor on every change of the rate; None: by the matrix's shape.",
    )

    # early stopping
    stop_loss: float = Field(1e-8, ge=0, description="Stop once the loss is this small.")
    stop_lr: float = Field(1e-10, ge=0, description="Stop once the learning rate is this small.")
    stop_stall: int = Field(
        1000, ge=1, description="Stop after this many steps without improvement."
    )
    stop_gain: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Stop once 25 steps lower the best codes' objective by less than this share; "
        "0: never, which takes all iterations, for little.",
    )

    # scales
    refine_rounds: int = Field(
        0,
        ge=0,
        le=20,
        description="Further rounds in which block scales are fitted to the codes, rounded to what "
        "the format stores, and the codes learned again; the iterations are shared evenly.",
    )
    joint_scales: bool = Field(
        False, description="Learn the scales together with the codes, step by step."
    )
    learn_scales: bool | None = Field(
        None,
        description="Learn the scales by gradient before the codes, and round them to what the "
        "format stores; None: for grids of at most 4 bits under freely chosen scales.",
    )

    @property
    def rate(self) -> float:
        """The learning rate the first step uses."""
        if self.lr is not None:
            return self.lr
        return PRODIGY_LR if self.optimizer == "prodigy" else DEFAULT_LR

    def model_post_init(self, _context: object) -> None:
        """Settings that contradict each other."""
        if self.min_k > self.max_k:
            raise RecipeError(
                f"LearnedOptions.min_k: {self.min_k} is above max_k {self.max_k}; lower one or "
                "raise the other"
            )
        if self.joint_scales and self.refine_rounds:
            raise RecipeError(
                "LearnedOptions.joint_scales: scales are learned jointly or in refine_rounds, not "
                "both; choose one"
            )
