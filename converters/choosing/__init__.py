"""Choosing formats: for a whole model, or for each layer under a budget."""

from . import curve
from .budget import fit_budget, fit_budget_file
from .result import Budget, Chosen
from .target import Target

__all__ = ["Budget", "Chosen", "Target", "curve", "fit_budget", "fit_budget_file"]
