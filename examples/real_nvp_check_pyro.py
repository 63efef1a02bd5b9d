"""The real-NVP check in Pyro: networks, training, sampling."""

import copy
import math

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from tqdm import tqdm

from pyro_gebm import KALE, KALEGuide, gradient_penalty, log_partition, nn
from pyro_gebm.base import snapshot
from pyro_gebm.flows import FlowRatioEnergy, real_nvp


class BoundedEnergy(torch.nn.Module):
    """K tanh(MLP / K), zero at the start."""

    def __init__(self, dim, hidden, bound):
        super().__init__()
        self.mlp, self.bound = nn.MLP((dim,), (), hidden, activation="leaky_relu"), bound
        torch.nn.init.zeros_(self.mlp.layers[-1].weight)
        torch.nn.init.zeros_(self.mlp.layers[-1].bias)

    def forward(self, x):
        return self.bound * torch.tanh(self.mlp(x) / self.bound)


def maximum_likelihood(split, seed, settings, show):
    """Two real NVPs of one run of maximum likelihood: that of the best validation, and the one on the way."""
    pyro.set_rng_seed(seed)
    flow = real_nvp(split.train.shape[1], settings["couplings"], settings["hidden"])
    guide = KALEGuide(lambda x: torch.zeros(len(x)))
    kale = KALE(flow, guide, _adam(settings["flow_rate"], settings["flow_steps"]), None, objective="maximum_likelihood")
    validation = torch.tensor(split.validation)

    def loss():
        return -flow.log_prob(validation).mean()

    best, warm = _train(kale, split.train, loss, seed, settings, "flow", show, keep=settings["warm_steps"])
    laws = []
    for state in (best, warm):
        kale.load_state_dict(state)
        laws.append(snapshot(flow))
    return laws


def flow_ratio(base, split, objective, seed, settings, show):
    """A GEBM with the energy log g - log q - C on a frozen flow g, from q = g."""
    pyro.set_rng_seed(seed)
    energy = FlowRatioEnergy(base)
    optim = _adam(settings["ratio_rate"], settings["ratio_steps"])
    kale = KALE(base, KALEGuide(energy, penalty=None), None, optim, objective=objective)
    validation = torch.tensor(split.validation)

    def loss():
        return -energy.q.log_prob(validation).mean()

    return _gebm(kale, split, loss, seed, settings, "ratio", show)


def bounded(base, split, objective, seed, settings, show):
    """A GEBM with the energy K tanh(MLP / K) on a frozen flow."""
    pyro.set_rng_seed(seed)
    energy = BoundedEnergy(split.train.shape[1], settings["energy_hidden"], settings["bound"])
    part = "chain" if objective == "contrastive_divergence" else "energy"
    guide = KALEGuide(energy, penalty=gradient_penalty(settings["penalty"]))
    kale = KALE(base, guide, None, _adam(settings["energy_rate"], settings[f"{part}_steps"]), objective=objective)
    validation = torch.tensor(split.validation)

    def loss():
        draws = base.sample((settings["validation_draws"],))
        return energy(validation).mean() + torch.logsumexp(-energy(draws), 0) - math.log(len(draws))

    return _gebm(kale, split, loss, seed, settings, part, show)


def _adam(rate, steps):
    def factory(parameters):
        def clip(*_):
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)

        adam = torch.optim.Adam(parameters, rate, fused=True)
        adam.register_step_pre_hook(clip)
        return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    return factory


def _train(kale, data, loss, seed, settings, part, show, keep=None):
    """The state of the smallest loss on the validation rows, and the one after `keep` steps."""
    rng, size = np.random.default_rng(seed), settings["batch_size"]
    best = kept = copy.deepcopy(kale.state_dict())
    smallest, order = np.inf, rng.permutation(len(data))
    for step in tqdm(range(1, settings[f"{part}_steps"] + 1), desc=f"{kale.objective} ({part})", disable=not show):
        order = rng.permutation(len(data)) if len(order) < size else order
        rows, order = order[:size], order[size:]
        noise = settings["noise"] * (part in ("flow", "ratio")) * rng.standard_normal((size, data.shape[1]), np.float32)
        kale.step(torch.tensor(data[rows] + noise))
        kept = copy.deepcopy(kale.state_dict()) if step == keep else kept
        if step % settings["every"] == 0:
            with torch.no_grad():
                value = loss().item()
            if value < smallest:
                smallest, best = value, copy.deepcopy(kale.state_dict())
    return best, kept


def _gebm(kale, split, loss, *args):
    best, _ = _train(kale, split.train, loss, *args)
    kale.load_state_dict(best)
    # no more steps: A settles alone
    return kale.run(0, split.train, batch_size=1, progress_bar=False).gebm


@torch.no_grad()
def log_density(law, x):
    """Log-densities of the rows of x."""
    return law.log_prob(torch.tensor(x)).double().numpy()


def true_log_partition(gebm):
    """C of a flow-ratio energy; None for another."""
    return gebm.energy.log_partition.item() if isinstance(gebm.energy, FlowRatioEnergy) else None


def estimate_log_partition(gebm, num_draws, seed, show):
    """Log-partition from fresh draws of the base."""
    pyro.set_rng_seed(seed + 1000)
    return log_partition(gebm, "importance", num_samples=num_draws, progress_bar=show)


def sample_in_z(gebm, seed, num_chains, num_warmup, num_samples, thinning, show):
    """NUTS on the latent law, pushed forward: array of shape `(chains, draws, D)`."""
    z = _run(gebm.latent.log_prob, gebm.latent_prior.sample, seed, num_chains, num_warmup, num_samples, thinning, show)
    with torch.no_grad():
        return gebm.decode(z).double().numpy()


def sample_in_x(gebm, seed, num_chains, num_warmup, num_samples, thinning, show):
    """NUTS on log g(x) - E(x): array of shape `(chains, draws, D)`."""
    x = _run(gebm.log_prob, gebm.base.sample, seed + 1, num_chains, num_warmup, num_samples, thinning, show)
    return x.double().numpy()


def _run(log_density, start, seed, num_chains, num_warmup, num_samples, thinning, show):
    """Chains of Pyro's NUTS in turn, from exact draws of the base."""
    pyro.set_rng_seed(seed)
    chains = []
    for _ in tqdm(range(num_chains), desc="NUTS", disable=not show):
        kernel = NUTS(potential_fn=lambda values: -log_density(values["value"]))
        mcmc = MCMC(
            kernel,
            num_samples=num_samples * thinning,
            warmup_steps=num_warmup,
            initial_params={"value": start()},
            disable_progbar=True,
        )
        mcmc.run()
        chains.append(mcmc.get_samples()["value"][thinning - 1 :: thinning])
    return torch.stack(chains)
