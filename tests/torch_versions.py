"""What tests need of torch that the oldest version that pyproject.toml allows does not have."""

from __future__ import annotations

import pytest
import torch

needs_saved_tensors = pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "data"),
    reason="this torch shows no saved tensor without running hooks; what is read from them is missing",
)
needs_single_edges = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7),
    reason="this torch begins no backward pass at a single edge of the graph",
)
