"""What divergences need in memory."""

import pytest
import torch

from pyro_gebm.divergences import kale_rkhs, kernels, mmd_witness, rkhs, sums


@pytest.mark.parametrize("exclude_diagonal", [False, True])
def test_blocks_are_summed_in_turn(exclude_diagonal, monkeypatch):
    x, rows = torch.randn(23, 2, requires_grad=True), []
    monkeypatch.setattr(sums, "BLOCK", 5 * len(x) * 8)
    monkeypatch.setattr(kernels.Gaussian, "profile", lambda self, r2: (rows.append(len(r2)), torch.exp(-0.5 * r2))[1])
    weights = torch.randn(23, 2)
    value = sums.kernel_matvec(kernels.Gaussian(1.0), x, x, weights, exclude_diagonal=exclude_diagonal).square().sum()
    torch.autograd.grad(value, x)
    assert rows[:5] == [5, 5, 5, 5, 3] and set(rows[5:]) == {5, 3}  # forward, and again for the gradient


def test_random_features_need_no_kernel_matrix():
    x, y = torch.randn(20_000, 2), 0.1 + torch.randn(20_000, 2)  # the kernel matrix would take 3.2 GB
    features = kernels.random_features(kernels.Gaussian(1.0), 2, 10)
    result = kale_rkhs(x, y, features, 0.1)
    assert 0.0 <= result.duality_gap < 1e-8 * result.value < 0.1
    gram = rkhs.Gram.of(features, y)
    assert gram.matrix is None and gram.features.shape == (20_000, 20)


def test_points_are_taken_to_the_type_of_the_samples():
    x = torch.randn(5, 2, dtype=torch.float32)
    assert mmd_witness(x, x + 1.0)(x.double().numpy()).dtype == torch.float32
