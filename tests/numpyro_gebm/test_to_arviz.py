"""Chains as ArviZ data: what NumPyro adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC

from gebm.arviz_data import named_statistics
from numpyro_gebm import to_arviz
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


def test_statistics_have_the_names_of_arviz():
    fields = {"adapt_state.step_size": 0.1, "adapt_state.warmup_converged": 1.0, "potential_energy": 2.0, "mine": 3.0}
    found = named_statistics({name: np.full((2, 3), value) for name, value in fields.items()})
    assert {name: value[0, 0] for name, value in found.items()} == {
        **{"step_size": 0.1, "warmup_converged": 1.0, "lp": -2.0, "mine": 3.0}
    }


def test_fields_that_are_trees_are_left_out():
    kernel = KineticLangevin(potential_fn=lambda z: 0.5 * (z**2).sum())
    mcmc = MCMC(kernel, num_warmup=10, num_samples=30, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), init_params=jnp.zeros((2, 2)), extra_fields=("chains", "num_steps"))
    assert isinstance(mcmc.get_extra_fields()["chains"], tuple)
    statistics = set(to_arviz(mcmc)["sample_stats"].data_vars)
    assert "n_steps" in statistics and "chains" not in statistics
