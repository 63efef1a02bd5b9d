"""Effect-handler strategy that moves a GEBM site of a model into its latent space."""

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult

from pyro_gebm.gebm import GEBM

__all__ = ["LatentReparam"]


class LatentReparam(Reparam):
    """Replace the site `x ~ GEBM` by the site `x_latent ~ gebm.latent` and the deterministic `x = B(x_latent)`.

    Works under plates, `expand`, `to_event` and `mask`. A `condition` placed *outside* `reparam` cannot be seen by
    it: observe the site with `obs=`, or condition inside.

    Raises:
        TypeError: if the site's distribution is not a `GEBM`.
        ValueError: if the site is observed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> model = pyro.poutine.reparam(lambda: pyro.sample("x", gebm), config={"x": LatentReparam()})
        >>> sorted(n for n in pyro.poutine.trace(model).get_trace().nodes if n[0] == "x")
        ['x', 'x_latent']
    """

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        name, fn, mask = msg["name"], msg["fn"], None
        if isinstance(fn, MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask
        gebm, event_dim = self._unwrap(fn)
        if not isinstance(gebm, GEBM):
            raise TypeError(
                f"Expected a GEBM at site '{name}' for LatentReparam; got a {type(gebm).__name__}. Name another site "
                "in `config=`."
            )
        if msg["is_observed"]:
            raise ValueError(
                f"Site '{name}' is observed: LatentReparam cannot infer the latent of an observed x. Observe a noisy "
                "function of x instead, or leave out LatentReparam if the base has a density."
            )
        latent = self._wrap(gebm.latent, event_dim - gebm.event_dim + gebm.latent.event_dim)
        if mask is not None:
            latent = latent.mask(mask)
        z = pyro.sample(f"{name}_latent", latent)
        x = gebm.decode(z)
        return {"fn": dist.Delta(x, event_dim=event_dim).mask(False), "value": x, "is_observed": True}
