"""Products on a CPU are the same whoever makes them."""

from __future__ import annotations

import pytest
import torch

from sweep.training.products import BatchedProduct, fastest_linear, product

SMALL, LARGE = (3, 5, 4), (200, 300, 64)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_strided", [False, True])
def test_a_product_is_that_of_torch(
    shape: tuple[int, int, int], dtype: torch.dtype, is_strided: bool
) -> None:
    m, k, n = shape
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    if is_strided:
        b = b.t().contiguous().t()
    torch.testing.assert_close(product(a, b), a @ b.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_batch_is_multiplied_into_its_place(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b, out = torch.randn(3, m, k), torch.randn(3, n, k), torch.zeros(3, m, n)
    multiply = BatchedProduct(a, b, out)
    a.mul_(2.0)  # what it multiplies is what is there when it is called
    multiply()
    torch.testing.assert_close(out, a @ b.mT, rtol=1e-4, atol=1e-4)


def test_the_faster_product_is_chosen_once() -> None:
    n_threads = torch.get_num_threads()
    assert fastest_linear() is fastest_linear()
    assert torch.get_num_threads() == n_threads
