"""The real-NVP check in NumPyro: networks, training, sampling."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax import random
from numpyro.infer import MCMC, NUTS
from tqdm import tqdm

from numpyro_gebm import KALE, KALEGuide, enable_compilation_cache, gradient_penalty, log_partition, nn
from numpyro_gebm.base import trained_part, with_trained_part
from numpyro_gebm.flows import FlowRatioEnergy, real_nvp
from numpyro_gebm.infer import init_to_prior

enable_compilation_cache()


class BoundedEnergy(eqx.Module):
    """K tanh(MLP / K), zero at the start."""

    mlp: nn.MLP
    bound: float = eqx.field(static=True)

    def __init__(self, dim, hidden, bound, *, rng_key):
        mlp = nn.MLP((dim,), (), hidden, activation="leaky_relu", rng_key=rng_key)
        zero = jax.tree.map(jnp.zeros_like, mlp.layers[-1])
        self.mlp, self.bound = eqx.tree_at(lambda mlp: mlp.layers[-1], mlp, zero), bound

    def __call__(self, x):
        return self.bound * jnp.tanh(self.mlp(x) / self.bound)


def maximum_likelihood(split, seed, settings, show):
    """Two real NVPs of one run of maximum likelihood: that of the best validation, and the one on the way."""
    flow = real_nvp(split.train.shape[1], settings["couplings"], settings["hidden"], rng_key=random.key(seed))
    guide = KALEGuide(lambda x: jnp.zeros(()))
    kale = KALE(flow, guide, _adam(settings["flow_rate"], settings["flow_steps"]), None, objective="maximum_likelihood")

    def law(state):
        return with_trained_part(flow, eqx.combine(state.base, trained_part(flow)))

    loss = jax.jit(lambda state, key: -law(state).log_prob(jnp.asarray(split.validation)).mean())
    best, warm = _train(kale, split.train, loss, seed, settings, "flow", show, keep=settings["warm_steps"])
    return law(best), law(warm)


def flow_ratio(base, split, objective, seed, settings, show):
    """A GEBM with the energy log g - log q - C on a frozen flow g, from q = g."""
    energy = FlowRatioEnergy(base)
    optim = _adam(settings["ratio_rate"], settings["ratio_steps"])
    kale = KALE(base, KALEGuide(energy, penalty=None), None, optim, objective=objective)

    @jax.jit
    def loss(state, key):
        return -eqx.combine(state.energy, energy).q.log_prob(jnp.asarray(split.validation)).mean()

    return _gebm(kale, split, loss, seed, settings, "ratio", show)


def bounded(base, split, objective, seed, settings, show):
    """A GEBM with the energy K tanh(MLP / K) on a frozen flow."""
    key = random.fold_in(random.key(seed), 1)
    energy = BoundedEnergy(split.train.shape[1], settings["energy_hidden"], settings["bound"], rng_key=key)
    part = "chain" if objective == "contrastive_divergence" else "energy"
    guide = KALEGuide(energy, penalty=gradient_penalty(settings["penalty"]))
    kale = KALE(base, guide, None, _adam(settings["energy_rate"], settings[f"{part}_steps"]), objective=objective)

    @jax.jit
    def loss(state, key):
        energies = jax.vmap(eqx.combine(state.energy, energy))
        draws = base.sample(key, (settings["validation_draws"],))
        log_z = jax.nn.logsumexp(-energies(draws)) - jnp.log(len(draws))
        return energies(jnp.asarray(split.validation)).mean() + log_z

    return _gebm(kale, split, loss, seed, settings, part, show)


def _adam(rate, steps):
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))


def _train(kale, data, loss, seed, settings, part, show, keep=None):
    """The state of the smallest loss on the validation rows, and the one after `keep` steps."""
    key, rng, size = random.key(seed), np.random.default_rng(seed), settings["batch_size"]
    best = kept = state = kale.init(key, data)
    smallest, order = np.inf, rng.permutation(len(data))
    for step in tqdm(range(1, settings[f"{part}_steps"] + 1), desc=f"{kale.objective} ({part})", disable=not show):
        order = rng.permutation(len(data)) if len(order) < size else order
        rows, order = order[:size], order[size:]
        noise = settings["noise"] * (part in ("flow", "ratio")) * rng.standard_normal((size, data.shape[1]), np.float32)
        state, _ = kale.update(state, data[rows] + noise)
        kept = state if step == keep else kept
        if step % settings["every"] == 0 and (value := float(loss(state, random.fold_in(key, step)))) < smallest:
            smallest, best = value, state
    return best, kept


def _gebm(kale, split, loss, *args):
    best, _ = _train(kale, split.train, loss, *args)
    # no more steps: A settles alone
    return kale.run(None, 0, split.train, batch_size=1, init_state=best, progress_bar=False).gebm


def log_density(law, x):
    """Log-densities of the rows of x."""
    return np.asarray(jax.jit(lambda law, x: law.log_prob(x))(law, jnp.asarray(x)), np.float64)


def true_log_partition(gebm):
    """C of a flow-ratio energy; None for another."""
    return float(gebm.energy.log_partition) if isinstance(gebm.energy, FlowRatioEnergy) else None


def estimate_log_partition(gebm, num_draws, seed, show):
    """Log-partition from fresh draws of the base."""
    key = random.fold_in(random.key(seed), 2)
    return log_partition(gebm, "importance", rng_key=key, num_samples=num_draws, progress_bar=show)


def sample_in_z(gebm, seed, num_chains, num_warmup, num_samples, thinning, show):
    """NUTS on the latent law, pushed forward: array of shape `(chains, draws, D)`."""
    kernel = NUTS(lambda: numpyro.sample("z", gebm.latent), init_strategy=init_to_prior)
    mcmc = _run(kernel, random.key(seed), num_chains, num_warmup, num_samples, thinning, show)
    return np.asarray(gebm.decode(mcmc.get_samples(group_by_chain=True)["z"]), np.float64)


def sample_in_x(gebm, seed, num_chains, num_warmup, num_samples, thinning, show):
    """NUTS on log g(x) - E(x): array of shape `(chains, draws, D)`."""
    key_start, key = random.split(random.fold_in(random.key(seed), 3))
    start = gebm.base.sample(key_start, (num_chains,))
    kernel = NUTS(potential_fn=lambda x: -gebm.log_prob(x))
    mcmc = _run(kernel, key, num_chains, num_warmup, num_samples, thinning, show, init_params=start)
    return np.asarray(mcmc.get_samples(group_by_chain=True), np.float64)


def _run(kernel, key, num_chains, num_warmup, num_samples, thinning, show, **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples * thinning,
        thinning=thinning,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=show,
    )
    mcmc.run(key, **kwargs)
    return mcmc
