"""The example of a repaired model in NumPyro: the regression, its draws, criticism and tilt."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive

from numpyro_gebm import kale_test, resample, tilt


def regression(x, y=None):
    """The textbook model; "row" is a pair (x, y)."""
    a, b = (numpyro.sample(name, dist.Normal(0.0, 3.0)) for name in "ab")
    scale = numpyro.sample("scale", dist.HalfNormal(3.0))
    with numpyro.plate("rows", len(x)):
        y = numpyro.sample("y", dist.Normal(a + b * x, scale), obs=y)
        numpyro.deterministic("row", jnp.stack([x, y], -1))


def fit(rows, num_draws, seed, progress_bar):
    """A program that draws rows: x from the table, y from the posterior predictive law."""
    mcmc = MCMC(NUTS(regression), num_warmup=500, num_samples=1000, progress_bar=progress_bar)
    mcmc.run(jax.random.key(seed), *jnp.asarray(rows).T)
    posterior, x = mcmc.get_samples(), jnp.asarray(rows[:, 0])
    rng = np.random.default_rng(seed)
    which = rng.integers(0, [[1000], [len(x)]], (2, num_draws))
    posterior = {name: value[which[0]] for name, value in posterior.items()}

    def model():
        with numpyro.plate("draws", num_draws):
            mean = posterior["a"] + posterior["b"] * x[which[1]]
            y = numpyro.sample("y", dist.Normal(mean, posterior["scale"]))
            return numpyro.deterministic("row", jnp.stack([x[which[1]], y], -1))

    return model


def draws(model, seed):
    """Posterior predictive rows."""
    return np.asarray(numpyro.handlers.seed(model, jax.random.key(seed))())


def criticise(data, rows, names, seed, progress_bar):
    """The verdict of `kale_test`."""
    return kale_test(data, rows, names=names, progress_bar=progress_bar, rng_key=jax.random.key(seed))


def repaired(model, energy, check, seed):
    """Draws of the tilted program, and its log-weights on fresh data."""
    weighted = Predictive(tilt(model, energy, "row"), num_samples=1)(jax.random.key(seed + 10))
    log_weight = weighted["row_log_weight"][0]
    rows = resample({"row": weighted["row"][0]}, log_weight, rng_key=jax.random.key(seed + 11))["row"]
    log_partition = jax.nn.logsumexp(log_weight) - np.log(len(log_weight))
    return np.asarray(rows), np.asarray(-jax.vmap(energy)(jnp.asarray(check, rows.dtype)) - log_partition)
