"""Products on a CPU are the same whoever makes them."""

from __future__ import annotations

import pytest
import torch

from sweep.training.products import InputGradient, Product, fastest_linear, product

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
@pytest.mark.parametrize("n", [(), (3,)])
def test_what_is_multiplied_is_what_is_there_when_it_is_called(
    shape: tuple[int, int, int], n: tuple[int, ...]
) -> None:
    m, k, batch = shape
    a, b, out = torch.randn(*n, m, k), torch.randn(*n, batch, k), torch.zeros(*n, m, batch)
    multiply = Product(a, b, out)
    a.mul_(2.0)
    result = multiply()
    torch.testing.assert_close(result, a @ b.mT, rtol=1e-4, atol=1e-4)
    assert (result is out) is not multiply.is_onednn


@pytest.mark.parametrize("shape", [SMALL, LARGE, (200, 600, 64)])
@pytest.mark.parametrize("n", [(), (3,)])
def test_the_gradient_of_the_inputs_leaves_out_the_bias(
    shape: tuple[int, int, int], n: tuple[int, ...]
) -> None:
    m, k, batch = shape
    w, d, out = torch.randn(*n, m, k + 1), torch.randn(*n, m, batch), torch.zeros(*n, k, batch)
    differentiate = InputGradient(w, d, out)
    d.mul_(2.0)
    differentiate()
    torch.testing.assert_close(out, w[..., :-1].mT @ d, rtol=1e-4, atol=1e-4)


def test_the_faster_product_is_chosen_once() -> None:
    n_threads = torch.get_num_threads()
    assert fastest_linear() is fastest_linear()
    assert torch.get_num_threads() == n_threads
