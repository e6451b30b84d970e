"""Choosing formats: for a whole model, or for each layer under a budget."""

from . import curve
from .budget import Budget, Chosen, Target, fit_budget, fit_budget_file

__all__ = ["Budget", "Chosen", "Target", "curve", "fit_budget", "fit_budget_file"]
