"""The example of a repaired model in Pyro: the regression, its draws, criticism and tilt."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, Predictive

from pyro_gebm import kale_test, resample, tilt


def regression(x, y=None):
    """The textbook model; "row" is a pair (x, y)."""
    a, b = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in "ab")
    scale = pyro.sample("scale", dist.HalfNormal(3.0))
    with pyro.plate("rows", len(x)):
        y = pyro.sample("y", dist.Normal(a + b * x, scale), obs=y)
        pyro.deterministic("row", torch.stack([x, y], -1), event_dim=1)


def fit(rows, num_draws, seed, progress_bar):
    """A program that draws rows: x from the table, y from the posterior predictive law."""
    pyro.set_rng_seed(seed)
    rows = torch.as_tensor(rows, dtype=torch.get_default_dtype())
    mcmc = MCMC(NUTS(regression), num_samples=1000, warmup_steps=300, disable_progbar=not progress_bar)
    mcmc.run(*rows.T)
    posterior, x = mcmc.get_samples(), rows[:, 0]
    which, place = torch.randint(1000, (num_draws,)), torch.randint(len(x), (num_draws,))
    posterior = {name: value[which] for name, value in posterior.items()}

    def model():
        with pyro.plate("draws", num_draws):
            y = pyro.sample("y", dist.Normal(posterior["a"] + posterior["b"] * x[place], posterior["scale"]))
            return pyro.deterministic("row", torch.stack([x[place], y], -1), event_dim=1)

    return model


def draws(model, seed):
    """Posterior predictive rows."""
    pyro.set_rng_seed(seed)
    return model().numpy()


def criticise(data, rows, names, seed, progress_bar):
    """The verdict of `kale_test`."""
    pyro.set_rng_seed(seed)
    return kale_test(data, rows, names=names, progress_bar=progress_bar)


@torch.no_grad()
def repaired(model, energy, check, seed):
    """Draws of the tilted program, and its log-weights on fresh data."""
    pyro.set_rng_seed(seed + 10)
    weighted = Predictive(tilt(model, energy, "row"), num_samples=1, return_sites=("row", "row_log_weight"))()
    row, log_weight = weighted["row"].reshape(-1, 2), weighted["row_log_weight"].flatten()
    rows = resample({"row": row}, log_weight)["row"]
    log_partition = torch.logsumexp(log_weight, 0) - np.log(len(log_weight))
    return rows.numpy(), (-energy(torch.as_tensor(check).to(row)) - log_partition).numpy()
