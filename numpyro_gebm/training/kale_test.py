"""Criticism of a model by an energy: by how much, how surely and where its draws differ from data."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from numpyro.distributions import Distribution

from gebm.kale_testing import (
    HIDDEN,
    RATE,
    KALETest,
    check_draws,
    check_permutations,
    feature_names,
    num_draws_of,
    penalty_weight,
    verdict_of,
)
from gebm.validation import instance
from numpyro_gebm import nn
from numpyro_gebm.callables import Energy, over_batch
from numpyro_gebm.keys import typed
from numpyro_gebm.training.guide import KALEGuide, gradient_penalty
from numpyro_gebm.training.two_samples import shuffled_parts, trained_energy

__all__ = ["Bounded", "kale_test"]


def kale_test(
    data: Any,
    model: Distribution | Any,
    guide: KALEGuide | None = None,
    energy_optim: optax.GradientTransformation | None = None,
    *,
    names: Sequence[str] | None = None,
    num_draws: int | None = None,
    num_steps: int = 500,
    batch_size: int | None = None,
    patience: int | None = None,
    num_permutations: int = 999,
    progress_bar: bool = True,
    rng_key: jax.Array,
) -> KALETest:
    r"""Criticise a model: by how many nats a row it loses against data, at least, how surely that is so, and where.

    An energy is trained to tell draws of the model from 60 % of the data, its best state chosen on 10 %; the rest of
    both is for the verdict: held-out KALE, a lower bound of KL(data || model) that the energy of a log-density ratio
    would reach, an exact permutation test, and what each feature adds. Log-density ratios beyond what the held-out
    draws can show are clipped. Rows must be independent: of a chain, take draws far apart. With posterior predictive
    draws it is a check of the fitted model. Source: arXiv:2003.05033.

    Args:
        data: shape `(N,) + event_shape`, N at least 20: an array, DataFrame or nested lists.
        model: a distribution, or draws of the model, shape `(M,) + event_shape`, M at least 20.
        guide: a fresh energy and its penalty; None for an MLP on standardised features.
        energy_optim: an Optax optimiser; None for Adam with a rate of 1e-3.
        names: a name for every feature; None for its place, or the columns of a DataFrame.
        num_draws: draws of a distribution; None for four times as many as data, at most 100,000.
        num_steps: steps of the energy; its best state on the 10 % is the one that is judged.
        batch_size: as for `KALE.run`.
        patience: looks at the 10 % without a better value after which training stops; None for no such stop.
        num_permutations: shuffles of the test, at least 19.
        progress_bar: show one.
        rng_key: a JAX random key.

    Returns:
        A `KALETest`: its `repr` is the report, `plot()` the picture, `energy` what repairs the model.

    Raises:
        TypeError: if they are not real numbers, or an argument is of the wrong kind.
        ValueError: for shapes that do not fit, too few rows, values that are not finite, or names that do not fit.

    Example:
        >>> import numpyro.distributions as dist
        >>> data = random.normal(random.key(0), (1000, 2)) * jnp.array([1.0, 1.5])
        >>> model = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> test = kale_test(data, model, names=("a", "b"), progress_bar=False, rng_key=random.key(1))
        >>> test.p_value < 0.01 and test.importance["b"].value > 5 * test.importance["a"].value
        True
    """
    key_draws, key_parts, key_new, key_run, key_test = random.split(typed(rng_key), 5)
    num_permutations = check_permutations(num_permutations)
    if guide is not None:
        instance("guide", guide, KALEGuide)
    names = getattr(data, "columns", None) if names is None else names
    if isinstance(model, Distribution):
        model = model.sample(key_draws, (num_draws_of(num_draws, len(data)),))
    check_draws(model)
    x_parts, y_parts = shuffled_parts(data, model, rng_key=key_parts)
    shape = x_parts[0].shape[1:]
    labels = feature_names(names, shape)
    standard: Any = (x_parts, y_parts)
    loc, scale = jnp.zeros(()), jnp.ones(())
    scaled = guide is None
    if guide is None:
        energy = nn.MLP(shape, (), HIDDEN, activation="silu", rng_key=key_new)
        guide = KALEGuide(energy, penalty=gradient_penalty(penalty_weight(len(x_parts[0]))))
        rows = jnp.concatenate([x_parts[0], y_parts[0]])
        loc, scale = rows.mean(0), rows.std(0)
        scale = jnp.where(scale > 0, scale, 1.0)
        standard = [[(part - loc) / scale for part in parts] for parts in (x_parts, y_parts)]
    how = {"batch_size": batch_size, "patience": patience, "progress_bar": progress_bar}
    optim = optax.adam(RATE) if energy_optim is None else energy_optim
    with warnings.catch_warnings():  # of skipped steps; its best state is judged, not its last one
        warnings.simplefilter("ignore", RuntimeWarning)
        energy = trained_energy(
            standard[0], standard[1], instance("guide", guide, KALEGuide), optim, num_steps, how, rng_key=key_run
        )
    if scaled:
        energy = _unscaled(cast(nn.MLP, energy), loc.reshape(-1), scale.reshape(-1))
    compiled = eqx.filter_jit(lambda energy, x: over_batch(energy, x, len(shape)))
    return verdict_of(
        partial(Bounded, energy),
        lambda rows: np.asarray(compiled(energy, rows), np.float64),
        np.asarray(y_parts[0]),
        len(x_parts[0]),
        np.asarray(x_parts[2]),
        np.asarray(y_parts[2]),
        labels,
        num_permutations,
        int(random.randint(key_test, (), 0, 2**31 - 1)),
    )


class Bounded(eqx.Module):
    """An energy, clipped to an interval.

    Args:
        energy: callable from one event to a scalar.
        low: lowest value.
        high: highest value.
    """

    energy: Energy
    low: float
    high: float

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.clip(self.energy(x), self.low, self.high)


def _unscaled(energy: nn.MLP, loc: jax.Array, scale: jax.Array) -> nn.MLP:
    """The energy of features as they are: its first layer takes their mean and their scale."""
    first = energy.layers[0]
    weight = first.weight / scale
    return eqx.tree_at(lambda e: (e.layers[0].weight, e.layers[0].bias), energy, (weight, first.bias - weight @ loc))
