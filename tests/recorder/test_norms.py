"""Norms against float64 numpy, at any size of tensor and of number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlens.recorder.norms import Reducer, device_norms, exact_norm, list_norms, norm

# The functions that compute norms: one tensor on the CPU or on any device, many tensors on the CPU or on any device.
NORMS = {
    "one": norm,
    "anywhere": lambda tensor: exact_norm(tensor).item(),
    "many": lambda tensor: float(Reducer().norms([tensor, tensor, torch.ones(3)], "key")[1]),
    "many-anywhere": lambda tensor: device_norms([tensor, torch.ones(3)])[0].item(),
}
EVERY_FUNCTION = pytest.mark.parametrize("function", NORMS.values(), ids=NORMS)


def truth(tensor: torch.Tensor) -> float:
    return float(np.linalg.norm(tensor.detach().double().numpy().ravel()))


@EVERY_FUNCTION
@pytest.mark.parametrize("numel", [0, 1, 7, 4096, 32768, 32769, 1_000_003, 20_000_000])
@pytest.mark.parametrize("constant", [False, True], ids=["normal", "constant"])
def test_right_to_1e_6_at_any_size_of_tensor(function, numel: int, constant: bool) -> None:
    generator = torch.Generator().manual_seed(numel)
    tensor = torch.full((numel,), 0.1) if constant else torch.randn(numel, generator=generator)
    assert function(tensor) == pytest.approx(truth(tensor), rel=1e-6, abs=0)


@EVERY_FUNCTION
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-25, 1e-10, 1e-6, 1e10, 1e20, 1e38])
@pytest.mark.parametrize("numel", [10, 100_000])
def test_right_at_any_size_of_number(function, size: float, numel: int) -> None:
    tensor = torch.randn(numel, generator=torch.Generator().manual_seed(1)).clamp(-3, 3) * size
    tensor = torch.where(tensor == 0, torch.tensor(size), tensor)
    assert torch.isfinite(tensor).all()
    assert function(tensor) == pytest.approx(truth(tensor), rel=1e-6)
    assert function(tensor) > 0


@EVERY_FUNCTION
def test_one_tiny_number_among_many_zeros_counts(function) -> None:
    tensor = torch.zeros(1_000_000)
    assert function(tensor) == 0
    tensor[123_456] = 1e-30
    assert function(tensor) == pytest.approx(1e-30, rel=1e-6)


@EVERY_FUNCTION
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(function, bad: float) -> None:
    tensor = torch.ones(100_000)
    tensor[5] = bad
    assert not np.isfinite(function(tensor))


@EVERY_FUNCTION
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(function, dtype: torch.dtype) -> None:
    tensor = (torch.randn(50_000, generator=torch.Generator().manual_seed(2)) * 100).to(dtype)
    assert function(tensor) == pytest.approx(truth(tensor), rel=1e-6)


@EVERY_FUNCTION
def test_sparse_complex_and_strided(function) -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 3]]), torch.tensor([1.0, 2.0, 4.0]), (5,), check_invariants=True
    )
    assert function(sparse) == pytest.approx(5.0)  # repeated indices add up: 3 and 4
    assert function(torch.tensor([3 + 4j, 0j]).conj()) == pytest.approx(5.0)
    transposed = torch.randn(400, 300).t()
    assert function(transposed) == pytest.approx(truth(transposed), rel=1e-6)


@EVERY_FUNCTION
@pytest.mark.parametrize("size", [1e-250, 1e-100, 1e200])
def test_float64_at_any_size(function, size: float, request: pytest.FixtureRequest) -> None:
    if "anywhere" in request.node.name:
        pytest.skip("off the CPU float64 tensors are taken as they are")
    assert function(torch.full((100,), size, dtype=torch.float64)) == pytest.approx(10 * size, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([(3,), (128, 128), (1025,), (2, 3), (5000,), (0,), (40000,)]), max_size=12))
def test_many_at_once_are_each_right_and_in_place(shapes: list[tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) * 10.0 ** (5 * i - 25) for i, shape in enumerate(shapes)]
    np.testing.assert_allclose(list_norms(tensors, Reducer(), "key"), [truth(t) for t in tensors], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-40, 1e-35, 1e-25, 1e-18, 1.0, 1e17, 1e20, 1e30])
@pytest.mark.parametrize("drift", [0.1, 0.7, 1.0, 1.6, 30.0])
def test_one_key_is_right_row_after_row(size: float, drift: float) -> None:
    """The numbers grow or shrink from row to row; how they are scaled is planned in one row for the next."""
    reducer, shapes = Reducer(), [(8, 3000), (8, 5), (3000, 4), (3000,), (5,), (5,), (50_000,)]
    for row in range(10):
        generator = torch.Generator().manual_seed(row)
        scale = min(max(size * drift**row, 1e-42), 1e37)
        tensors = [torch.randn(shape, generator=generator).clamp(-3, 3) * scale for shape in shapes]
        np.testing.assert_allclose(reducer.norms(tensors, "key"), [truth(t) for t in tensors], rtol=1e-6)


def test_a_list_that_changes_its_shapes_under_one_key_is_taken_anew() -> None:
    reducer = Reducer()
    first = [torch.ones(4), torch.ones(4), torch.ones(9)]
    for tensors in (first, [torch.ones(4), torch.ones(9), torch.ones(9)], first[:2], [t.double() for t in first], []):
        np.testing.assert_allclose(reducer.norms(tensors, "key"), [truth(t) for t in tensors])
    sparse = torch.eye(3).to_sparse()
    assert reducer.norms([sparse, sparse, torch.ones(9)], "key").tolist() == pytest.approx([3**0.5, 3**0.5, 3])


@pytest.mark.parametrize("count", [8, 48])
@pytest.mark.parametrize("last", [[], [torch.randn(5)]], ids=["stacked", "mixed"])
def test_a_list_of_other_shapes_is_detected(count: int, last: list[torch.Tensor]) -> None:
    """As a short last batch brings it."""
    reducer = Reducer()
    for rows in (32, 32, count, 32, count):
        tensors = [*(torch.randn(rows, 64) for _ in range(4)), *last]
        expected = [tensor.double().norm().item() for tensor in tensors]
        np.testing.assert_allclose(reducer.norms(tensors, "outputs"), expected, rtol=1e-6)
