"""Norms against float64 numpy, at any size of tensor and of number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlens.recorder.norms import combine_norms, exact_norm, fast_norm

NORMS = [exact_norm, fast_norm]


def truth(tensor: torch.Tensor) -> float:
    return float(np.linalg.norm(tensor.detach().double().numpy().ravel()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("numel", [0, 1, 7, 4096, 32768, 32769, 1_000_003, 20_000_000])
@pytest.mark.parametrize("constant", [False, True], ids=["normal", "constant"])
def test_right_to_1e_6_at_any_size_of_tensor(norm, numel: int, constant: bool) -> None:
    generator = torch.Generator().manual_seed(numel)
    tensor = torch.full((numel,), 0.1) if constant else torch.randn(numel, generator=generator)
    assert norm(tensor).item() == pytest.approx(truth(tensor), rel=1e-6, abs=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-25, 1e-10, 1e-6, 1e10, 1e20, 1e38])
@pytest.mark.parametrize("numel", [10, 100_000])
def test_right_at_any_size_of_number(norm, size: float, numel: int) -> None:
    tensor = torch.randn(numel, generator=torch.Generator().manual_seed(1)).clamp(-3, 3) * size
    tensor = torch.where(tensor == 0, torch.tensor(size), tensor)
    assert torch.isfinite(tensor).all()
    assert norm(tensor).item() == pytest.approx(truth(tensor), rel=1e-6)
    assert norm(tensor).item() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_one_tiny_number_among_many_zeros_counts(norm) -> None:
    tensor = torch.zeros(1_000_000)
    assert norm(tensor).item() == 0
    tensor[123_456] = 1e-30
    assert norm(tensor).item() == pytest.approx(1e-30, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(norm, bad: float) -> None:
    tensor = torch.ones(100_000)
    tensor[5] = bad
    assert not np.isfinite(norm(tensor).item())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(norm, dtype: torch.dtype) -> None:
    tensor = (torch.randn(50_000, generator=torch.Generator().manual_seed(2)) * 100).to(dtype)
    assert norm(tensor).item() == pytest.approx(truth(tensor), rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_sparse_complex_and_strided(norm) -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 3]]), torch.tensor([1.0, 2.0, 4.0]), (5,), check_invariants=True
    )
    assert norm(sparse).item() == pytest.approx(5.0)  # repeated indices add up: 3 and 4
    assert norm(torch.tensor([3 + 4j, 0j]).conj()).item() == pytest.approx(5.0)
    transposed = torch.randn(400, 300).t()
    assert norm(transposed).item() == pytest.approx(truth(transposed), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=30), st.integers(1, 29))
def test_parts_combine_to_the_whole(values: list[float], cut: int) -> None:
    whole = torch.tensor(values)
    parts = [part for part in (whole[:cut], whole[cut:]) if len(part)]
    assert combine_norms([exact_norm(part) for part in parts]).item() == pytest.approx(truth(whole), rel=1e-9)
