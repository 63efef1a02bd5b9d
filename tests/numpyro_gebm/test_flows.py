"""Real NVP: density, inverse, pytree behaviour, training, and the energy with a known log-partition."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpyro_cases import standard_normal

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, nn
from numpyro_gebm.base import trained_part, with_trained_part
from numpyro_gebm.flows import AffineCoupling, FlowRatioEnergy, real_nvp


def random_flow(dim=3, seed=0, scale=0.3, num_couplings=2, hidden=(5, 4)):
    """A flow whose parameters are all random: it starts as the identity."""
    flow = real_nvp(dim, num_couplings, hidden, rng_key=jax.random.key(seed))
    flat, unravel = ravel_pytree(trained_part(flow))
    flat = scale * jax.random.normal(jax.random.key(seed + 1), flat.shape)
    return with_trained_part(flow, unravel(flat))


@jax.jit
def both_ways(flow, z):
    """Everything that the test of the density compares, in one compilation."""

    def push(z):
        for transform in flow.transforms:
            z = transform(z)
        return z

    pulled = x = push(z)
    for transform in reversed(flow.transforms):
        pulled = transform.inv(pulled)
    draws, intermediates = flow.sample_with_intermediates(jax.random.key(3), (5,))
    return {
        "x": x,
        "one row": push(z[0]),
        "log_det": jnp.linalg.slogdet(jax.vmap(jax.jacobian(push))(z))[1],
        "log_prob": flow.log_prob(x),
        "pulled": pulled,
        "of draws": (flow.log_prob(draws), flow.log_prob(draws, intermediates)),
    }


@pytest.mark.parametrize("dim", [5])
def test_density_is_the_change_of_variables(dim):
    z = jax.random.normal(jax.random.key(2), (4, dim))
    values = both_ways(random_flow(dim), z)
    assert np.abs(values["x"] - z).max() > 0.1
    np.testing.assert_allclose(values["one row"], values["x"][0], rtol=0, atol=1e-12)
    expected = standard_normal(dim).log_prob(z) - values["log_det"]
    np.testing.assert_allclose(values["log_prob"], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(values["pulled"], z, rtol=0, atol=1e-10)
    np.testing.assert_allclose(*values["of draws"], rtol=0, atol=1e-10)


def test_the_density_integrates_to_one():
    flow = random_flow(2, seed=3)
    side = jnp.linspace(-15.0, 15.0, 600)
    grid = jnp.stack(jnp.meshgrid(side, side), -1)
    density = jax.jit(lambda flow, x: jnp.exp(flow.log_prob(x)))(flow, grid)
    np.testing.assert_allclose(density.sum() * (side[1] - side[0]) ** 2, 1.0, atol=1e-3)


def test_every_coordinate_changes_in_turn():
    coupling = AffineCoupling(5, (4,), rng_key=jax.random.key(0))
    swapped = AffineCoupling(5, (4,), swap=True, rng_key=jax.random.key(0))
    for transform, kept in ((coupling, slice(2)), (swapped, slice(2, None))):
        (transform,) = jax.tree.map(jnp.ones_like, [transform])
        x = jnp.arange(5.0)
        np.testing.assert_array_equal(transform(x) == x, np.isin(np.arange(5), np.arange(5)[kept]))


def test_new_weights_cause_no_new_trace():
    traces = []

    @jax.jit
    def value(flow, energy, x):
        traces.append(None)
        return flow.log_prob(x).sum() + GEBM(flow, energy).log_prob(x).sum()

    values = [value(random_flow(seed=s), FlowRatioEnergy(random_flow(seed=s)), jnp.ones((2, 3))) for s in range(3)]
    assert len(traces) == 1 and len({float(v) for v in values}) == 3


def test_copies_are_equal_and_pickle():
    flow = random_flow()
    copied = pickle.loads(pickle.dumps(flow))
    assert copied.transforms == flow.transforms and flow.transforms != random_flow(seed=7).transforms
    np.testing.assert_array_equal(copied.log_prob(jnp.ones(3)), flow.log_prob(jnp.ones(3)))


def test_gradients_reach_every_array():
    arrays, unravel = ravel_pytree(trained_part(random_flow()))

    def loss(flat):
        flow = with_trained_part(random_flow(), unravel(flat))
        return flow.log_prob(jnp.ones((2, 3))).sum()

    leaves = jax.tree.leaves(unravel(jax.jit(jax.grad(loss))(arrays)))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert sum(bool((leaf != 0).any()) for leaf in leaves) == len(leaves) == 2 * 2 * 3 * 2


@pytest.mark.slow  # JAX compiles long; Pyro's twin is in `make test`
def test_maximum_likelihood_fits_a_curved_law():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0] ** 2
    optim = optax.adam(optax.cosine_decay_schedule(5e-3, 800))
    flow = real_nvp(2, 2, (16, 16), rng_key=jax.random.key(0))
    kale = KALE(flow, KALEGuide(lambda x: 0.0 * x.sum()), optim, None, objective="maximum_likelihood")
    result = kale.run(jax.random.key(1), 800, x[:2000], batch_size=200, progress_bar=False)
    entropy = 2 * 0.5 * np.log(2 * np.pi * np.e) + np.log(0.5)
    held_out = -result.gebm.base.log_prob(jnp.asarray(x[2000:])).mean()
    assert abs(held_out - entropy) < 0.1  # two standard errors of the mean and the fit; N(0, I) gives 3.7


def test_flow_ratio_energy_is_the_flow():
    base, flow = random_flow(seed=0), random_flow(seed=5)
    energy = FlowRatioEnergy(base, flow)
    gebm = GEBM(base, energy, log_partition=energy.log_partition)
    x = jax.random.normal(jax.random.key(1), (6, 3))
    ours, expected = jax.jit(lambda gebm, flow: (gebm.log_prob(x), flow.log_prob(x)))(gebm, flow)
    np.testing.assert_allclose(ours, expected, atol=1e-10)
    squares = sum((leaf**2).sum() for leaf in jax.tree.leaves(flow.transforms))
    np.testing.assert_allclose(energy.log_partition, np.log(squares))


@pytest.mark.slow  # the same
def test_flow_ratio_energy_trains_its_flow_alone_and_learns_its_constant():
    base = random_flow(2, seed=0, scale=0.1, hidden=(6,))
    energy = FlowRatioEnergy(base)
    data = np.random.normal([0.5, 0.0], [0.7, 1.3], (1000, 2))
    kale = KALE(base, KALEGuide(energy, penalty=None), None, optax.adam(2e-3))
    result = kale.run(jax.random.key(0), 200, data, batch_size=200, progress_bar=False)
    trained = result.gebm.energy
    assert trained.flow != energy.flow and trained.base == energy.base == list(base.transforms)
    assert abs(result.gebm.log_partition - trained.log_partition) < 0.01
    assert trained.q.log_prob(data).mean() > base.log_prob(data).mean() + 0.05


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: real_nvp(1, rng_key=jax.random.key(0)), r"Expected dim >= 2.*got 1"),
        (lambda: real_nvp(3, 0, rng_key=jax.random.key(0)), r"Expected num_couplings >= 1; got 0"),
        (lambda: real_nvp(3, rng_key=jax.random.key(0)).transforms[0](jnp.ones(4)), r"length 3; got shape \(4,\)"),
        (lambda: FlowRatioEnergy(dist.Normal(0.0, 1.0)), r"for base; got Normal. Use `real_nvp`"),
        (lambda: FlowRatioEnergy(random_flow(), standard_normal(3)), r"for flow; got Independent"),
        (lambda: FlowRatioEnergy(random_flow(3), random_flow(2)), r"events of shape \(3,\); got \(2,\)"),
        (
            lambda: FlowRatioEnergy(Pushforward(standard_normal(2), nn.MLP((2,), (2,), rng_key=jax.random.key(0)))),
            "for base; got Pushforward",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
