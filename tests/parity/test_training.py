"""Training in both hosts from the same weights, on the same data and base draws: the same steps."""

import numpy as np
import pytest

DATA = np.random.default_rng(0).normal(1.0, 1.0, size=(50, 2))


class SquaredHinge:
    """An objective of the user's own."""

    def energy_loss(self, energies):
        return ((1 + energies.data).clip(0) ** 2).mean() + ((1 - energies.base).clip(0) ** 2).mean()

    def base_loss(self, base, data, energies):
        return energies().mean()


def trained(host, objective):
    """Parameters, losses and held-out values after a few steps; draws of the base are all one point."""
    rng = np.random.default_rng(1)
    prior = host.normal(2, loc=0.3, scale=1e-200)
    generator = host.network(lambda w, b, z: z @ w + b, rng.normal(size=(2, 2)), rng.normal(size=2))
    energy = host.network(
        lambda w, v, x: ((x @ w) / (1 + (x @ w) ** 2) ** 0.5) @ v, rng.normal(size=(2, 4)), rng.normal(size=4)
    )
    guide = host.KALEGuide(energy, log_partition=0.2, penalty=host.l2_penalty(0.01))
    kale = host.KALE(
        host.Pushforward(prior, generator),
        guide,
        host.sgd(0.05),
        host.sgd(0.05),
        objective=objective,
        energy_steps=2,
        ema_decay=0.5,
    )
    result = host.train(kale, 4, DATA, batch_size=50, validation=DATA[:20], validate_every=2)
    parameters = [*host.parameters(result.gebm.base), *host.parameters(result.gebm.energy)]
    return [*parameters, host.numpy(result.gebm.log_partition), *map(host.numpy, result.losses), *result.validation[:4]]


@pytest.mark.parametrize(
    "objective", ["kale", "plain_kale", "donsker_varadhan", pytest.param(SquaredHinge(), id="own")]
)
def test_steps_from_the_same_weights(both, objective):
    ours, theirs = (trained(host, objective) for host in both)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
