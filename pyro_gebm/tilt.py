"""Effect handler that reweights a program by an energy at one of its sites."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch._C._functorch import is_functorch_wrapped_tensor

from gebm.programs import NOT_NORMALIZED
from gebm.tilting import check_tilt, log_partition_at, plate_depth, site_missing, systematic_rows
from gebm.weights import LogPartition
from pyro_gebm.callables import Energy, is_learned, over_batch
from pyro_gebm.gebm import neg_beta_energy

__all__ = ["resample", "tilt"]


class _Tilt(Messenger):
    def __init__(self, energy, site, inverse_temperature, log_partition):
        super().__init__()
        self.energy, self.site, self.inverse_temperature, self._log_partition = check_tilt(
            energy, site, inverse_temperature, log_partition, torch.as_tensor, _value_of
        )
        self._seen: list[str] | None = None

    def __enter__(self):
        self._seen = []
        return super().__enter__()

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        seen, self._seen = self._seen, None
        if exc_type is None and seen is not None and self.site not in seen:
            raise site_missing(self.site, seen)

    def _pyro_post_sample(self, msg):
        if self._seen is None or type(msg["fn"]).__name__ == "_Subsample":  # of a plate
            return
        self._seen.append(msg["name"])
        if msg["name"] != self.site:
            return
        x, fn = msg["value"], msg["fn"]
        deterministic = msg["infer"].get("_deterministic", False)
        event_dim = x.dim() - plate_depth(msg["cond_indep_stack"]) if deterministic else fn.event_dim
        log_weight = self._log_weight(x, event_dim)
        if isinstance(fn, MaskedDistribution) and not deterministic:
            log_weight = torch.where(torch.as_tensor(fn._mask, device=x.device), log_weight, 0.0)
        pyro.deterministic(f"{self.site}_log_weight", log_weight, event_dim=0)
        pyro.factor(f"{self.site}_factor", log_weight)

    def _log_weight(self, x, event_dim):
        event_shape = tuple(x.shape[x.dim() - event_dim :])
        try:
            energy = over_batch(self.energy, x.reshape(x.shape if x.dim() > event_dim else (1, *x.shape)), event_dim)
        except Exception as error:
            raise ValueError(
                f"The energy cannot take values of site '{self.site}', of shape {('N', *event_shape)}: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}."
            ) from error
        batch = x.shape[: x.dim() - event_dim]
        if not isinstance(energy, torch.Tensor) or energy.shape != (batch or (1,)):
            got = tuple(energy.shape) if isinstance(energy, torch.Tensor) else type(energy).__name__
            raise ValueError(
                f"The energy must return shape (N,) for N values of site '{self.site}' of shape {event_shape}; got "
                f"{got} for {tuple(batch or (1,))}."
            )
        if self._log_partition is None and is_learned(self.energy):
            raise ValueError(NOT_NORMALIZED)
        beta = self.inverse_temperature.to(energy)
        return neg_beta_energy(beta, energy.reshape(batch)) - log_partition_at(self._log_partition, beta)


def tilt(
    fn: Callable[..., Any] | None = None,
    energy: Energy | None = None,
    site: str | None = None,
    inverse_temperature: torch.Tensor | float = 1.0,
    log_partition: torch.Tensor | float | LogPartition | Callable[[Any], Any] | None = None,
) -> Any:
    r"""Multiply a program by $\exp(-\beta E(x) - A)$ at one of its sites.

    The program's density p gains a factor for the value x of the site, and for each value where it stands in a plate:

    .. math:: q(\theta) \propto p(\theta) \prod_i \exp(-\beta E(x_i(\theta)) - A)

    It adds the factor `<site>_factor`, which the plates, masks and scales around the site act on, and the deterministic
    site `<site>_log_weight`. NUTS and the kernels of `infer` sample q. `Predictive` with `num_samples` draws from the
    program as it was, *weighted*: `<site>_log_weight` is among what it returns, and `resample` makes draws of q of it.
    At `x ~ base`, the same law as `x ~ GEBM(base, energy)`. Source: arXiv:2003.05033.

    Args:
        fn: a model; None gives a context manager.
        energy: `torch.nn.Module` or callable from events of the site `(N, ...)` to `(N,)`.
        site: name of a sample site, or of a deterministic one. The axes of plates around a deterministic site are
            batch axes, all others belong to the event.
        inverse_temperature: $\beta \ge 0$, a finite scalar.
        log_partition: A: a scalar, an estimate of `log_partition`, a callable of $\beta$, or None for 0. Draws do not
            depend on it.

    Returns:
        The tilted model.

    Raises:
        TypeError: if the energy cannot be called, or the site is not a name.
        ValueError: for an inverse temperature that is negative or not finite, an A that is not finite; when the model
            runs, if it has no such site, or the energy does not fit it.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=torch.ones(3))
        >>> tilted = tilt(model, lambda x: 0.5 * (x**2).sum(-1), "x")
        >>> fixed = {"mu": torch.tensor(0.0)}
        >>> before, after = (pyro.poutine.trace(pyro.condition(m, fixed)).get_trace() for m in (model, tilted))
        >>> round(float(after.log_prob_sum() - before.log_prob_sum()), 4)
        -1.5
    """
    handler = _Tilt(energy, site, inverse_temperature, log_partition)
    return handler if fn is None else handler(fn)


def resample(
    samples: Mapping[str, torch.Tensor], log_weight: torch.Tensor, num_draws: int | None = None
) -> dict[str, torch.Tensor]:
    """Draws of a tilted program from weighted draws of the program as it was, by systematic resampling.

    Args:
        samples: tensors with the draws as their first axis, as `Predictive` returns them.
        log_weight: log-weights, shape `(N, ...)`; axes after the first, those of plates, are summed.
        num_draws: number of draws; None for N.

    Returns:
        A dict of the same tensors at the drawn rows.

    Raises:
        ValueError: for log-weights that are NaN or infinite above, or all minus infinity; for tensors whose first axes
            differ.

    Warns:
        RuntimeWarning: if the weights are too uneven to rely on (Pareto k above 0.7, an effective size below a tenth).

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Predictive
        >>> tilted = tilt(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), lambda x: 0.5 * x**2, "x")
        >>> draws = Predictive(tilted, num_samples=1000)()
        >>> new = resample(draws, draws["x_log_weight"])
        >>> bool(abs(new["x"].var() - 0.5) < 0.1)
        True
    """
    log_weight = torch.as_tensor(log_weight).detach()
    rows = systematic_rows(samples, log_weight.cpu().numpy(), num_draws, float(torch.rand(())))
    rows = torch.as_tensor(rows)[torch.randperm(len(rows))].to(log_weight.device)
    return {name: value[rows] for name, value in samples.items()}


def _value_of(x):
    return None if is_functorch_wrapped_tensor(x) else x.detach().cpu().numpy()
