"""The baselines of KALE: maximum likelihood of the base, contrastive divergence of the energy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro.distributions.transforms import AffineTransform
from numpyro_cases import standard_normal

from numpyro_gebm import KALE, KALEGuide, Pushforward


class Quadratic(eqx.Module):
    linear: jax.Array
    square: jax.Array

    def __call__(self, x):
        return jnp.sum(self.linear * x + self.square * x**2)


def quadratic():
    return Quadratic(jnp.zeros(()), jnp.zeros(()))


def train(kale, num_steps, data, **kwargs):
    return kale.run(jax.random.key(0), num_steps, data, batch_size=200, progress_bar=False, **kwargs)


def test_maximum_likelihood_of_a_flow():
    data = np.random.normal([1.0, -2.0], [0.5, 2.0], (2000, 2))
    base = dist.TransformedDistribution(standard_normal(2), [AffineTransform(jnp.zeros(2), jnp.ones(2))])
    optim = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    kale = KALE(base, KALEGuide(quadratic()), optim, None, objective="maximum_likelihood")
    result = train(kale, 1500, data)
    (affine,) = result.gebm.base.transforms
    np.testing.assert_allclose(affine.loc, data.mean(0), atol=0.02)
    np.testing.assert_allclose(jnp.abs(affine.scale), data.std(0), rtol=0.02)


def test_contrastive_divergence_finds_the_density_ratio():
    data = np.random.normal(0.5, 0.5, 20_000)
    optim = optax.adam(optax.cosine_decay_schedule(0.05, 1500), b1=0.5)
    guide = KALEGuide(quadratic(), penalty=None)
    kale = KALE(dist.Normal(0.0, 1.0), guide, None, optim, objective="contrastive_divergence")
    result = train(kale, 1500, data)  # exactly: E = -2 x + 1.5 x^2
    np.testing.assert_allclose([result.gebm.energy.linear, result.gebm.energy.square], [-2.0, 1.5], atol=0.15)
    draws = jax.random.normal(jax.random.key(1), (200_000,))
    exact = jnp.log(jnp.exp(-jax.vmap(result.gebm.energy)(draws)).mean())
    assert abs(result.gebm.log_partition - exact) < 0.02
    assert abs(result.state.chains.u.mean() - 0.5) < 4 * 0.5 / np.sqrt(128)


def test_chains_move_to_constrained_latents_and_resume(tmp_path):
    def build():
        base = Pushforward(dist.Exponential(1.0), lambda z: z)
        return KALE(base, KALEGuide(quadratic()), None, optax.adam(1e-2), objective="contrastive_divergence")

    data = np.random.exponential(0.5, 500)
    whole = train(build(), 12, data)
    train(build(), 7, data, checkpoint_dir=tmp_path)
    resumed = train(build(), 12, data, resume_from=tmp_path)
    np.testing.assert_array_equal(whole.state.chains.u, resumed.state.chains.u)
    np.testing.assert_array_equal(whole.state.energy.square, resumed.state.energy.square)
    assert np.isfinite(whole.state.chains.u).all() and whole.state.energy.linear > 0
