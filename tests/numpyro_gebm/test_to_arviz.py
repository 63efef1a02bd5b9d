"""Chains as ArviZ data: what NumPyro adds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel

from numpyro_gebm import diagnose, to_arviz
from numpyro_gebm.infer import KineticLangevin

pytest.importorskip("arviz")


@pytest.mark.parametrize("kind", ["array", "tuple"])
def test_a_chain_on_a_potential_of_any_tree(kind):
    start = jnp.zeros((2, 2)) if kind == "array" else (jnp.zeros((2, 2)), jnp.ones((2, 2)))
    kernel = KineticLangevin(potential_fn=lambda z: sum(0.5 * (leaf**2).sum() for leaf in jax.tree.leaves(z)))
    mcmc = MCMC(kernel, num_warmup=10, num_samples=30, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), init_params=start)
    data = to_arviz(mcmc)
    values = list(data["posterior"].data_vars.values())
    assert [value.shape for value in values] == [(2, 30, 2)] * len(jax.tree.leaves(start))
    lp = sum(-0.5 * (value.values**2).sum(-1) for value in values)
    np.testing.assert_allclose(data["sample_stats"]["lp"], lp, rtol=1e-10)


class Adaptation(NamedTuple):
    step_size: jax.Array
    warmup_converged: jax.Array


class State(NamedTuple):
    z: jax.Array
    adapt_state: Adaptation
    kinetic_temperature: jax.Array
    energy_error: jax.Array


class Still(MCMCKernel):
    """Statistics only."""

    sample_field = "z"

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        return State(jnp.zeros(2), Adaptation(jnp.array(0.1), jnp.array(False)), jnp.array(0.9), jnp.array(0.2))

    def sample(self, state, model_args, model_kwargs):
        return state

    def get_diagnostics_str(self, state):
        return ""

    @property
    def model(self):
        return None


def test_statistics_of_an_adaptation_keep_their_names():
    mcmc = MCMC(Still(), num_warmup=2, num_samples=9, progress_bar=False)
    fields = ("adapt_state.step_size", "adapt_state.warmup_converged", "kinetic_temperature", "energy_error")
    mcmc.run(jax.random.key(0), extra_fields=fields)
    statistics = to_arviz(mcmc)["sample_stats"]
    expected = {"step_size": 0.1, "warmup_converged": False, "kinetic_temperature": 0.9, "energy_error": 0.2}
    assert set(statistics.data_vars) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], np.full((1, 9), value))
    found = diagnose(mcmc)
    assert found.warmup_converged == (False,) and found.kinetic_temperature == pytest.approx(0.9)
