"""The authors' own code, for the benchmarks: imported from a checkout, nothing of it is copied here.

git clone https://github.com/MichaelArbel/GeneralizedEBM /some/where
.venv/bin/python benchmarks/training.py --reference /some/where
"""

import argparse
import importlib
import sys
from unittest import mock

import numpy as np
import torch

__all__ = ["kinetic_langevin_of", "load", "trainer_of"]


def load(directory, name):
    """A module of the checkout; what it imports and is not installed here is replaced by a stand-in.

    Args:
        directory: the checkout.
        name: "samplers" or "trainer".

    Returns:
        The module.
    """
    sys.path.insert(0, str(directory))
    try:
        for _ in range(100):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name == name:
                    raise ValueError(f"Expected a checkout of GeneralizedEBM; {directory} has no {name}.py.") from error
                package, _, _ = error.name.partition(".")
                for stand_in in {package, error.name}:
                    sys.modules.setdefault(stand_in, mock.MagicMock(__path__=[], __spec__=None))
        raise ValueError(f"Cannot import {name} from {directory}.")
    finally:
        sys.path.remove(str(directory))


def trainer_of(directory, generator, energy, latent_size, learning_rate=1e-4):
    """Their `Trainer` around given networks, with their defaults for KALE; its `iteration` is one step.

    Their constructor wants data sets and folders, so it is passed by and the attributes that `iteration` reads are set.
    """
    trainer = load(directory, "trainer")
    self = object.__new__(trainer.Trainer)
    self.args = argparse.Namespace(
        noise_factor=1, criterion="kale", penalty_lambda=1.0, penalty_type="gradient", grad_clip=1, train_mode="both"
    )
    self.device = torch.get_default_device()
    self.generator, self.discriminator = generator, energy
    self.log_partition = torch.nn.Parameter(torch.zeros(1))
    self.d_params = [*energy.parameters(), self.log_partition]
    adam = {"lr": learning_rate, "betas": (0.5, 0.999)}
    self.optim_d, self.optim_g = (
        torch.optim.Adam(self.d_params, **adam),
        torch.optim.Adam(generator.parameters(), **adam),
    )
    self.noise_gen = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(latent_size), 1.0), 1)
    self.loss = sys.modules["compute"].kale
    return self


def kinetic_langevin_of(directory, generator, energy, latent_prior, step_size, friction):
    """A function from positions, velocities and a number of steps to where their kinetic Langevin sampler ends.

    `step_size` is h and `friction` per unit of time, as in the packages; theirs are `lambda = (h / 2)^2` and kappa.
    """
    samplers = load(directory, "samplers")
    potential = samplers.Latent_potential(generator, energy, latent_prior, temperature=1.0)
    sampler = samplers.LMCsampler(potential, None, gamma=(step_size / 2) ** 2, kappa=friction)

    def run(z, v, num):
        end, _ = sampler.sample(torch.stack([z, v], -1), T=num)
        return np.asarray(end[..., 0]), np.asarray(end[..., 1])

    return run
