"""KALE between two laws of which there are draws: of a model against data, it is the gap that is left."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from numpyro.distributions import constraints

from gebm.evaluation import Evaluation, WeightSums, evaluation_of
from gebm.two_samples import parts_of
from numpyro_gebm.callables import Energy, over_batch
from numpyro_gebm.distribution import Distribution, sample_stack
from numpyro_gebm.keys import typed
from numpyro_gebm.training.batches import finite_array
from numpyro_gebm.training.guide import KALEGuide
from numpyro_gebm.training.kale import KALE

__all__ = ["kale_between", "shuffled_parts", "trained_energy"]


class _Rows(Distribution):
    """Rows of an array, each as likely as another."""

    arg_constraints = {}
    pytree_data_fields = ("rows",)

    def __init__(self, rows):
        self.rows = rows
        super().__init__((), rows.shape[1:], validate_args=False)

    @property
    def support(self):
        return constraints.independent(constraints.real, self.event_dim)

    @sample_stack
    def sample(self, key, sample_shape=()):
        return self.rows[random.randint(typed(key), sample_shape, 0, len(self.rows))]

    def log_prob(self, value, intermediates=None):
        raise NotImplementedError("Draws have no density.")


def kale_between(
    data: Any,
    draws: Any,
    guide: KALEGuide,
    energy_optim: optax.GradientTransformation,
    *,
    num_steps: int = 2000,
    batch_size: int | None = None,
    patience: int | None = 8,
    progress_bar: bool = True,
    rng_key: jax.Array,
) -> Evaluation:
    r"""Held-out KALE(P || Q) from independent draws of both: by how many nats a point Q loses against P, at least.

    A fresh energy is trained on 60 % of both samples, its best state chosen on 10 %, and KALE taken on the rest. With
    draws of a GEBM it is the gap between data and model that is left, whatever A is. Where its `ess` is small, the
    value can exceed the divergence: `kale_test` clips what draws cannot show. Source: arXiv:2003.05033.

    Args:
        data: draws of P, shape `(N,) + event_shape`, N at least 20.
        draws: draws of Q, shape `(M,) + event_shape`, M at least 20, such as the ends of fresh chains.
        guide: a fresh energy and its penalty.
        energy_optim: an Optax optimiser.
        num_steps: steps of the energy.
        batch_size: as for `KALE.run`.
        patience: looks without a better value after which training stops.
        progress_bar: show one.
        rng_key: a JAX random key.

    Returns:
        An `Evaluation`.

    Raises:
        TypeError: if they are not real numbers, or the optimiser is not an Optax one.
        ValueError: for shapes that do not fit, too few rows, or values that are not finite.

    Example:
        >>> from numpyro_gebm import nn
        >>> x, y = 0.5 + random.normal(random.key(0), (2000, 2)), random.normal(random.key(1), (2000, 2))
        >>> guide = KALEGuide(nn.MLP((2,), (), hidden=(8,), rng_key=random.key(2)), penalty=None)
        >>> how = {"num_steps": 300, "progress_bar": False, "rng_key": random.key(3)}
        >>> found = kale_between(x, y, guide, optax.adam(1e-2), **how)
        >>> 0.1 < found.value < 0.25 + 4 * found.std_error  # the exact value is 0.25
        True
    """
    key_parts, key_run = random.split(typed(rng_key))
    x_parts, y_parts = shuffled_parts(data, draws, rng_key=key_parts)
    how = {"batch_size": batch_size, "patience": patience, "progress_bar": progress_bar}
    energy = trained_energy(x_parts, y_parts, guide, energy_optim, num_steps, how, rng_key=key_run)
    energies = eqx.filter_jit(lambda energy, x: over_batch(energy, x, x.ndim - 1))
    of_data, of_draws = (np.asarray(energies(energy, rows)) for rows in (x_parts[2], y_parts[2]))
    return evaluation_of(of_data, WeightSums.of(of_draws))


def shuffled_parts(data: Any, draws: Any, *, rng_key: jax.Array) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Both samples, checked, in random order, and each in three parts: for training, for the choice, for the verdict.

    Args:
        data: draws of one law, shape `(N,) + event_shape`.
        draws: draws of another, shape `(M,) + event_shape`.
        rng_key: a JAX random key.
    """
    shape = np.shape(draws)[1:]
    draws = finite_array("draws", draws, shape, None, None)
    data = finite_array("data", data, shape, draws.dtype, None)
    keys = random.split(typed(rng_key))
    x, y = (random.permutation(key, jnp.asarray(rows)) for key, rows in zip(keys, (data, draws)))
    return parts_of("data", x), parts_of("draws", y)


def trained_energy(
    x_parts: Sequence[jax.Array],
    y_parts: Sequence[jax.Array],
    guide: KALEGuide,
    energy_optim: optax.GradientTransformation,
    num_steps: int,
    how: dict[str, Any],
    *,
    rng_key: jax.Array,
) -> Energy:
    """An energy that is low on the rows x, high on the rows y, in its best state on their second parts.

    Args:
        x_parts: rows for training, and for the choice of the state.
        y_parts: rows for training.
        guide: a fresh energy and its penalty.
        energy_optim: an Optax optimiser.
        num_steps: steps.
        how: arguments of `KALE.run`.
        rng_key: a JAX random key.
    """
    kale = KALE(_Rows(y_parts[0]), guide, None, energy_optim)
    return kale.run(rng_key, num_steps, x_parts[0], validation=x_parts[1], settle_draws=0, **how).gebm.energy
