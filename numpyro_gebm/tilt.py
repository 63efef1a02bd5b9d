"""Effect handler that reweights a program by an energy at one of its sites."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.typing import ArrayLike
from numpyro.primitives import Messenger
from numpyro.util import not_jax_tracer

from gebm.programs import NOT_NORMALIZED
from gebm.tilting import check_tilt, log_partition_at, plate_depth, site_missing, systematic_rows
from gebm.weights import LogPartition
from numpyro_gebm.callables import Energy, is_learned, over_batch
from numpyro_gebm.gebm import neg_beta_energy
from numpyro_gebm.keys import typed

__all__ = ["resample", "tilt"]


class tilt(Messenger):
    r"""Multiply a program by $\exp(-\beta E(x) - A)$ at one of its sites.

    The program's density p gains a factor for the value x of the site, and for each value where it stands in a plate:

    .. math:: q(\theta) \propto p(\theta) \prod_i \exp(-\beta E(x_i(\theta)) - A)

    It adds the factor `<site>_factor`, which the plates, masks and scales around the site act on, and the deterministic
    site `<site>_log_weight`. NUTS and the kernels of `infer` sample q. `Predictive` with `num_samples` draws from the
    program as it was, *weighted*: `<site>_log_weight` is among what it returns, and `resample` makes draws of q of it.
    At `x ~ base`, the same law as `x ~ GEBM(base, energy)`. Source: arXiv:2003.05033.

    Args:
        fn: a model.
        energy: callable from one event of the site to a scalar.
        site: name of a sample site, or of a deterministic one. The axes of plates around a deterministic site are
            batch axes, all others belong to the event.
        inverse_temperature: $\beta \ge 0$, a finite scalar.
        log_partition: A: a scalar, an estimate of `log_partition`, a callable of $\beta$, or None for 0. Draws do not
            depend on it.

    Raises:
        TypeError: if the energy cannot be called, or the site is not a name.
        ValueError: for an inverse temperature that is negative or not finite, an A that is not finite; when the model
            runs, if it has no such site, or the energy does not fit it.

    Example:
        >>> from numpyro.infer.util import log_density
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("x", dist.Normal(mu, 1.0).expand([3]).to_event(1))
        >>> tilted = tilt(model, lambda x: 0.5 * x @ x, "x")
        >>> sites = {"mu": jnp.array(0.0), "x": jnp.ones(3)}
        >>> before, after = (log_density(m, (), {}, sites)[0] for m in (model, tilted))
        >>> round(float(after - before), 4)
        -1.5
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        energy: Energy | None = None,
        site: str | None = None,
        inverse_temperature: ArrayLike = 1.0,
        log_partition: ArrayLike | LogPartition | Callable[[Any], Any] | None = None,
    ):
        self.energy, self.site, self.inverse_temperature, self._log_partition = check_tilt(
            energy, site, inverse_temperature, log_partition, jnp.asarray, _value_of
        )
        self._seen: list[str] | None = None
        super().__init__(fn)

    def __enter__(self):
        self._seen = []
        return super().__enter__()

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        seen, self._seen = self._seen, None
        if exc_type is None and seen is not None and self.site not in seen:
            raise site_missing(self.site, seen)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] not in ("sample", "deterministic") or self._seen is None:
            return
        self._seen.append(msg["name"])
        if msg["name"] != self.site:
            return
        x = jnp.asarray(msg["value"])
        fn: Any = msg.get("fn")
        deterministic = msg["type"] == "deterministic"
        event_dim = x.ndim - plate_depth(msg["cond_indep_stack"]) if deterministic else fn.event_dim
        log_weight = self._log_weight(x, event_dim)
        while isinstance(fn, dist.MaskedDistribution):
            if not isinstance(fn._mask, bool):  # those that are come from handlers, such as that of `Predictive`
                log_weight = jnp.where(fn._mask, log_weight, 0.0)
            fn = fn.base_dist
        numpyro.deterministic(f"{self.site}_log_weight", log_weight)
        numpyro.factor(f"{self.site}_factor", log_weight)

    def _log_weight(self, x, event_dim):
        event_shape = x.shape[x.ndim - event_dim :]
        try:
            out = jax.eval_shape(self.energy, jax.ShapeDtypeStruct(event_shape, x.dtype))
        except Exception as error:
            raise ValueError(
                f"The energy cannot take a value of site '{self.site}', of shape {event_shape}: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}."
            ) from error
        if getattr(out, "shape", None) != ():
            raise ValueError(
                f"The energy must return a scalar, shape (), for one value of site '{self.site}' of shape "
                f"{event_shape}; got {getattr(out, 'shape', type(out).__name__)}."
            )
        if self._log_partition is None and is_learned(self.energy):
            raise ValueError(NOT_NORMALIZED)
        beta = self.inverse_temperature
        return neg_beta_energy(beta, over_batch(self.energy, x, event_dim)) - log_partition_at(
            self._log_partition, beta
        )


def resample(
    samples: Mapping[str, Any], log_weight: ArrayLike, num_draws: int | None = None, *, rng_key: jax.Array
) -> dict[str, jax.Array]:
    """Draws of a tilted program from weighted draws of the program as it was, by systematic resampling.

    Args:
        samples: arrays with the draws as their first axis, as `Predictive` returns them.
        log_weight: log-weights, shape `(N, ...)`; axes after the first, those of plates, are summed.
        num_draws: number of draws; None for N.
        rng_key: a JAX random key.

    Returns:
        A dict of the same arrays at the drawn rows.

    Raises:
        ValueError: for log-weights that are NaN or infinite above, or all minus infinity; for arrays whose first axes
            differ.

    Warns:
        RuntimeWarning: if the weights are too uneven to rely on (Pareto k above 0.7, an effective size below a tenth).

    Example:
        >>> from numpyro.infer import Predictive
        >>> tilted = tilt(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)), lambda x: 0.5 * x**2, "x")
        >>> draws = Predictive(tilted, num_samples=4000)(random.key(0))
        >>> new = resample(draws, draws["x_log_weight"], rng_key=random.key(1))
        >>> bool(abs(new["x"].var() - 0.5) < 0.05)
        True
    """
    rng_key = typed(rng_key)
    rows = systematic_rows(samples, np.asarray(log_weight), num_draws, float(random.uniform(rng_key)))
    rows = random.permutation(random.fold_in(rng_key, 1), rows)
    return {name: jnp.asarray(value)[rows] for name, value in samples.items()}


def _value_of(x):
    return np.asarray(x) if not_jax_tracer(x) else None
