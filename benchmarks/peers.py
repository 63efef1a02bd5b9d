"""Samplers of BlackJAX on a latent law, tuned as its documentation does, for `sampling.py ess --peers`.

Each peer is a function of a random key and of starts, shape `(chain, d)`; it returns draws, shape `(chain, draw, d)`,
warm-up included in its time. `pip install blackjax`; tried with 1.7.1.
"""

import blackjax
import jax
import jax.numpy as jnp
import optax
from jax import lax, random

__all__ = ["peers"]


def peers(log_density, num_draws):
    """Maps a name to a peer, and to whether it is exact.

    Args:
        log_density: of one position, shape `(d,)`.
        num_draws: draws that are kept of each chain.
    """
    return {
        "BlackJAX, GHMC by MEADS, 1000 + 5 a draw": (_meads_ghmc(log_density, 1000, num_draws, 5), True),
        "BlackJAX, HMC by ChEES, 500": (_chees_hmc(log_density, 500, num_draws), True),
        "BlackJAX, adjusted MCLMC": (_adjusted_mclmc(log_density, 4000, num_draws), True),
        "BlackJAX, NUTS by window adaptation, 300": (_nuts(log_density, 300, num_draws), True),
        "BlackJAX, MCLMC, unadjusted, 5 a draw": (_mclmc(log_density, 4000, num_draws, 5), False),
    }


def _draws(step, states, key, num_draws, thin=1):
    """Positions of all chains after every `thin` steps; `step` is that of one chain."""
    num_chains = len(jax.tree.leaves(states)[0])

    def one(states, key):
        return jax.vmap(step)(random.split(key, num_chains), states), None

    def some(states, key):
        states, _ = lax.scan(one, states, random.split(key, thin))
        return states, states.position

    _, positions = lax.scan(some, states, random.split(key, num_draws))
    return jnp.swapaxes(positions, 0, 1)


def _meads_ghmc(log_density, num_warmup, num_draws, thin):
    def run(key, z):
        key_warmup, key_draws = random.split(key)
        warmup = blackjax.meads_adaptation(
            log_density, len(z), adaptation_info_fn=blackjax.adaptation.base.get_filter_adapt_info_fn()
        )
        (states, parameters), _ = warmup.run(key_warmup, z, num_warmup)
        step = blackjax.ghmc(log_density, **parameters).step
        return _draws(lambda key, state: step(key, state)[0], states, key_draws, num_draws, thin)

    return run


def _chees_hmc(log_density, num_warmup, num_draws):
    def run(key, z):
        key_warmup, key_draws = random.split(key)
        warmup = blackjax.chees_adaptation(
            log_density, len(z), adaptation_info_fn=blackjax.adaptation.base.get_filter_adapt_info_fn()
        )
        (states, parameters), _ = warmup.run(key_warmup, z, 0.1, optax.adam(0.05), num_warmup)
        step = blackjax.dynamic_hmc(log_density, **parameters).step
        return _draws(lambda key, state: step(key, state)[0], states, key_draws, num_draws)

    return run


def _adjusted_mclmc(log_density, num_tuning, num_draws):
    average, build = 2.0, blackjax.mcmc.adjusted_mclmc_dynamic.build_kernel

    def num_steps(key, avg=average):
        return jnp.ceil(random.uniform(key) * jnp.clip(2 * avg - 1, 1)).astype(int)

    def run(key, z):
        key_init, key_tune, key_starts, key_draws = random.split(key, 4)
        kernel = build(integration_steps_fn=num_steps)
        init = blackjax.mcmc.adjusted_mclmc_dynamic.init
        state, tuned, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
            kernel, log_density, num_tuning, init(z[0], log_density, key_init), key_tune, target=0.8
        )
        del state
        starts = jax.vmap(lambda z, key: init(z, log_density, key))(z, random.split(key_starts, len(z)))

        def step(key, state):
            return kernel(
                key,
                state,
                log_density,
                step_size=tuned.step_size,
                inverse_mass_matrix=tuned.inverse_mass_matrix,
                integration_steps_params=(tuned.L / tuned.step_size,),
            )[0]

        return _draws(step, starts, key_draws, num_draws, 3)[:, num_draws // 4 :]

    return run


def _mclmc(log_density, num_tuning, num_draws, thin):
    def run(key, z):
        key_init, key_tune, key_starts, key_draws = random.split(key, 4)
        kernel, init = blackjax.mcmc.mclmc.build_kernel(), blackjax.mcmc.mclmc.init
        _, tuned, _ = blackjax.mclmc_find_L_and_step_size(
            kernel, num_tuning, init(z[0], log_density, key_init), key_tune, logdensity_fn=log_density
        )
        starts = jax.vmap(lambda z, key: init(z, log_density, key))(z, random.split(key_starts, len(z)))

        def step(key, state):
            return kernel(key, state, log_density, tuned.inverse_mass_matrix, tuned.L, tuned.step_size)[0]

        return _draws(step, starts, key_draws, num_draws, thin)[:, num_draws // 4 :]

    return run


def _nuts(log_density, num_warmup, num_draws):
    def run(key, z):
        key_warmup, key_draws = random.split(key)
        warmup = blackjax.window_adaptation(
            blackjax.nuts, log_density, adaptation_info_fn=blackjax.adaptation.base.get_filter_adapt_info_fn()
        )

        def warm(key, z):
            (state, parameters), _ = warmup.run(key, z, num_warmup)
            return state, parameters

        states, parameters = jax.vmap(warm)(random.split(key_warmup, len(z)), z)
        kernel = blackjax.nuts.build_kernel()

        def one(states, key):
            keys = random.split(key, len(z))
            step = lambda key, state, p: kernel(key, state, log_density, p["step_size"], p["inverse_mass_matrix"])[0]  # noqa: E731
            states = jax.vmap(step)(keys, states, parameters)
            return states, states.position

        _, positions = lax.scan(one, states, random.split(key_draws, num_draws))
        return jnp.swapaxes(positions, 0, 1)

    return run
