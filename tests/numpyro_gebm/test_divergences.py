"""What divergences compile to."""

import jax
import jax.numpy as jnp

from numpyro_gebm.divergences import kale_rkhs, kernels, sums

GAUSSIAN = kernels.Gaussian(1.0)


def test_blocks_are_summed_in_turn(monkeypatch):
    x = jnp.zeros((23, 2))
    monkeypatch.setattr(sums, "BLOCK", 5 * len(x) * 8)
    text = str(jax.make_jaxpr(lambda x: sums.kernel_matvec(GAUSSIAN, x, x, x))(x))
    assert "scan" in text and "scan" not in str(jax.make_jaxpr(lambda x: GAUSSIAN(x, x) @ x)(x))


def test_random_features_need_no_kernel_matrix():
    features = kernels.random_features(GAUSSIAN, 2, 300, rng_key=jax.random.key(0))
    text = str(jax.make_jaxpr(lambda x, y: kale_rkhs(x, y, features, 0.1))(*[jnp.zeros((10**6, 2))] * 2))
    assert "1000000,1000000" not in text and "600,600" in text
