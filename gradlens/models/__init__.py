"""Plain and residual nets of any depth, by one block, and a registry that knows other people's models too."""

from gradlens.models.plain_and_residual import ResidualNet, build_net
from gradlens.models.registry import build_model

__all__ = ["ResidualNet", "build_model", "build_net"]
