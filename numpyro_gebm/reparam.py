"""Effect-handler strategy that moves a GEBM site of a model into its latent space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import Reparam

from numpyro_gebm.gebm import GEBM

__all__ = ["LatentReparam"]


class LatentReparam(Reparam):
    """Replace the site `x ~ GEBM` by the site `x_latent ~ gebm.latent` and the deterministic `x = B(x_latent)`.

    Works under plates, `expand`, `to_event` and `mask`. A `condition` placed *outside* `reparam` cannot be seen by
    it: observe the site with `obs=`, or condition inside. Inside a `scan` put `reparam` around the site, in the
    function that is scanned.

    Raises:
        TypeError: if the site's distribution is not a `GEBM`.
        ValueError: if the site is observed.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.handlers import reparam, seed
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> model = reparam(lambda: numpyro.sample("x", gebm), config={"x": LatentReparam()})
        >>> sorted(numpyro.handlers.trace(seed(model, jax.random.key(0))).get_trace())
        ['x', 'x_latent']
    """

    def __call__(self, name: str, fn: dist.Distribution, obs: Any) -> tuple[None, jax.Array]:
        mask = None
        if isinstance(fn, dist.MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask
        gebm, expand_shape, event_dim = self._unwrap(fn)
        if not isinstance(gebm, GEBM):
            raise TypeError(
                f"Expected a GEBM at site '{name}' for LatentReparam; got a {type(gebm).__name__}. Name another site "
                "in `config=`."
            )
        if obs is not None:
            raise ValueError(
                f"Site '{name}' is observed: LatentReparam cannot infer the latent of an observed x. Observe a noisy "
                "function of x instead, or leave out LatentReparam if the base has a density. A site of a `scan` is "
                "reparametrised in the function that is scanned."
            )
        latent = self._wrap(gebm.latent, expand_shape, event_dim - gebm.event_dim + len(gebm.latent.event_shape))
        if mask is not None:
            latent = latent.mask(jnp.asarray(mask))
        z = numpyro.sample(f"{name}_latent", latent)
        return None, gebm.decode(z)
