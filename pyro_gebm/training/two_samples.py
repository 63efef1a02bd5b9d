"""KALE between two laws of which there are draws: of a model against data, it is the gap that is left."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from gebm.evaluation import Evaluation, WeightSums, evaluation_of
from gebm.two_samples import parts_of
from pyro_gebm.callables import Energy
from pyro_gebm.training.batches import finite_tensor
from pyro_gebm.training.guide import KALEGuide
from pyro_gebm.training.kale import KALE

__all__ = ["kale_between", "shuffled_parts", "trained_energy"]


class _Rows(dist.TorchDistribution):
    """Rows of a tensor, each as likely as another."""

    arg_constraints = {}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, rows: torch.Tensor):
        self.rows = rows
        super().__init__(torch.Size(), rows.shape[1:], validate_args=False)

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        return self.rows[torch.randint(len(self.rows), tuple(sample_shape), device=self.rows.device)]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("Draws have no density.")


def kale_between(
    data: Any,
    draws: Any,
    guide: KALEGuide,
    energy_optim: Callable[[list], Any],
    *,
    num_steps: int = 2000,
    batch_size: int | None = None,
    patience: int | None = 8,
    progress_bar: bool = True,
) -> Evaluation:
    r"""Held-out KALE(P || Q) from independent draws of both: by how many nats a point Q loses against P, at least.

    A fresh energy is trained on 60 % of both samples, its best state chosen on 10 %, and KALE taken on the rest. With
    draws of a GEBM it is the gap between data and model that is left, whatever A is. Where its `ess` is small, the
    value can exceed the divergence: `kale_test` clips what draws cannot show. Source: arXiv:2003.05033.

    Args:
        data: draws of P, shape `(N,) + event_shape`, N at least 20.
        draws: draws of Q, shape `(M,) + event_shape`, M at least 20, such as the ends of fresh chains.
        guide: a fresh energy, trained in place, and its penalty.
        energy_optim: factory of an optimiser, as for `KALE`.
        num_steps: steps of the energy.
        batch_size: as for `KALE.run`.
        patience: looks without a better value after which training stops.
        progress_bar: show one.

    Returns:
        An `Evaluation`.

    Raises:
        TypeError: if they are not real numbers, or the optimiser is not a factory.
        ValueError: for shapes that do not fit, too few rows, or values that are not finite.

    Example:
        >>> import pyro
        >>> from pyro_gebm import nn
        >>> pyro.set_rng_seed(0)
        >>> x, y = 0.5 + torch.randn(1000, 2), torch.randn(1000, 2)
        >>> guide = KALEGuide(nn.MLP((2,), (), hidden=(8,)), penalty=None)
        >>> optim = lambda parameters: torch.optim.Adam(parameters, 1e-2)
        >>> found = kale_between(x, y, guide, optim, num_steps=200, progress_bar=False)
        >>> 0.1 < found.value < 0.25 + 4 * found.std_error  # the exact value is 0.25
        True
    """
    x_parts, y_parts = shuffled_parts(data, draws)
    how = {"batch_size": batch_size, "patience": patience, "progress_bar": progress_bar}
    energy = trained_energy(x_parts, y_parts, guide, energy_optim, num_steps, how)
    with torch.no_grad():
        of_data, of_draws = (energy(rows).cpu().numpy() for rows in (x_parts[2], y_parts[2]))
    return evaluation_of(of_data, WeightSums.of(of_draws))


def shuffled_parts(data: Any, draws: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Both samples, checked, in random order, and each in three parts: for training, for the choice, for the verdict.

    Args:
        data: draws of one law, shape `(N,) + event_shape`.
        draws: draws of another, shape `(M,) + event_shape`.
    """
    shape = tuple(np.shape(draws)[1:])
    like = draws if isinstance(draws, torch.Tensor) and draws.is_floating_point() else torch.zeros(())
    x, y = (finite_tensor(name, rows, shape, like, None) for name, rows in (("data", data), ("draws", draws)))
    x, y = (rows[torch.randperm(len(rows), device=rows.device)] for rows in (x, y))
    return parts_of("data", x), parts_of("draws", y)


def trained_energy(
    x_parts: Sequence[torch.Tensor],
    y_parts: Sequence[torch.Tensor],
    guide: KALEGuide,
    energy_optim: Callable[[list], Any],
    num_steps: int,
    how: dict[str, Any],
) -> Energy:
    """An energy that is low on the rows x, high on the rows y, in its best state on their second parts.

    Args:
        x_parts: rows for training, and for the choice of the state.
        y_parts: rows for training.
        guide: a fresh energy, trained in place, and its penalty.
        energy_optim: factory of an optimiser.
        num_steps: steps.
        how: arguments of `KALE.run`.
    """
    kale = KALE(_Rows(y_parts[0]), guide, None, energy_optim)
    return kale.run(num_steps, x_parts[0], validation=x_parts[1], settle_draws=0, **how).gebm.energy
