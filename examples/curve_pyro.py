"""The curve example in Pyro: networks, training, sampling."""

import copy
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, divergences, gradient_penalty, nn

#: Steps of each demonstration: for (b) base steps of both, then energy steps on the finished base.
STEPS = {"a": (4_000, 0), "b": (1_500, 2_000)}

torch.set_num_threads(1)  # networks this small gain nothing from a second thread, and lose much on a busy machine


class Trained(NamedTuple):
    """A trained model, the base it started from, and A as training left it."""

    initial_base: Pushforward
    gebm: GEBM
    last_log_partition: float


class Deformed(torch.nn.Module):
    """A curve after a trainable affine map: its rotation, stretching, shear and shift."""

    def __init__(self, curve, matrix, shift):
        super().__init__()
        self.curve, self.matrix, self.shift = curve, torch.nn.Parameter(matrix), torch.nn.Parameter(shift)

    def forward(self, z):
        return self.curve(z[:, 0], torch) @ self.matrix.T + self.shift


def train_energy(curve, data, seed, settings, steps, progress_bar=True):
    """(a): train the energy alone on a base that has the support of the target, but t uniform."""
    pyro.set_rng_seed(seed)
    base = Pushforward(_uniform(), lambda z: curve(z[:, 0], torch))
    guide = KALEGuide(_energy(settings), penalty=gradient_penalty(settings["final_penalty"]))
    return Trained(base, *_train_energy(base, guide, data, settings, steps[0], progress_bar))


def train_both(curve, data, seed, settings, steps, progress_bar=True):
    """(b): train base and energy together, then the energy alone on the finished base."""
    pyro.set_rng_seed(seed)
    base = Pushforward(_uniform(), Deformed(curve, *map(torch.tensor, settings["start"])))
    initial_base = copy.deepcopy(base)  # modules are trained in place
    energy = _energy(settings)
    kale = KALE(
        base,
        KALEGuide(energy, penalty=gradient_penalty(settings["penalty"])),
        base_optim=_adam(settings["base_rate"], steps[0]),
        energy_optim=lambda parameters: torch.optim.Adam(parameters, settings["rate"], betas=(0.5, 0.999), fused=True),
        energy_steps=settings["energy_steps"],
        noise_factor=settings["noise_factor"],
    )
    joint = kale.run(steps[0], data, batch_size=settings["batch_size"], progress_bar=progress_bar).gebm
    penalty = gradient_penalty(settings["final_penalty"])
    guide = KALEGuide(energy, log_partition=joint.log_partition, penalty=penalty)
    return Trained(initial_base, *_train_energy(joint.base, guide, data, settings, steps[1], progress_bar))


def _uniform():
    return dist.Uniform(0.0, 1.0).expand([1]).to_event(1)


def _energy(settings):
    return nn.MLP((2,), (), settings["hidden"], activation="silu")


def _adam(rate, steps):
    """Adam with a learning rate that falls to zero."""

    def build(parameters):
        optimizer = torch.optim.Adam(parameters, rate, betas=(0.5, 0.999), fused=True)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))

    return build


def _train_energy(base, guide, data, settings, steps, progress_bar):
    kale = KALE(
        base,
        guide,
        base_optim=None,
        energy_optim=_adam(settings["final_rate"], steps),
        noise_factor=settings["noise_factor"],
    )
    result = kale.run(steps, data, batch_size=settings["batch_size"], progress_bar=progress_bar)
    return result.gebm, float(result.losses.log_partition[-1])


def draw(trained, num, seed):
    """Independent draws of the initial base, the base and the GEBM, as NumPy arrays."""
    pyro.set_rng_seed(seed + 1000)
    laws = {"initial base": trained.initial_base, "base": trained.gebm.base, "GEBM": trained.gebm}
    return {name: law.sample((num,)).numpy() for name, law in laws.items()}


@torch.no_grad()
def energies(gebm, x):
    """E + A at points x, as a NumPy array."""
    return -gebm.log_weight(torch.as_tensor(x, dtype=torch.get_default_dtype())).numpy()


@torch.no_grad()
def energy_of_base_draws(gebm, num, seed):
    """E of `num` fresh draws of the base, as a NumPy array."""
    pyro.set_rng_seed(seed + 2000)
    return np.concatenate([gebm.energy(gebm.base.sample((10_000,))).numpy() for _ in range(num // 10_000)])


def mmd2(x, y, bandwidth):
    """Unbiased MMD² of two samples."""
    return float(divergences.mmd2(torch.as_tensor(x), torch.as_tensor(y), bandwidth))
