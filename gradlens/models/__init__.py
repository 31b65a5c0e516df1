"""Plain and residual models of any depth, built from one block, and a registry that also builds other models."""

from gradlens.models.plain_and_residual import Init, ResidualNet, build_from_spec
from gradlens.models.registry import build_model

__all__ = ["Init", "ResidualNet", "build_model", "build_from_spec"]
