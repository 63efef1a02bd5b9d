"""A verdict in words on a run of a sampler."""

from typing import Any

from pyro.infer.mcmc.api import AbstractMCMC

from gebm import diagnose as core
from gebm.diagnose import Diagnosis
from gebm.validation import instance
from pyro_gebm.gebm import GEBM
from pyro_gebm.to_arviz import energy_of_site, to_arviz

__all__ = ["Diagnosis", "diagnose"]


def diagnose(data: Any, *, gebm: GEBM | None = None, site: str | None = None) -> Diagnosis:
    """Whether the draws of a run can be trusted, in words, and what to do if not.

    R-hat and effective sample size of every scalar quantity of the posterior and of `energy_x` and `lp`; divergences,
    BFMI, acceptance, bias of unadjusted kernels, warm-up, and the modes that each chain visited. A statistic that was
    not recorded is left out.

    Args:
        data: an MCMC object that `to_arviz` takes, or what `to_arviz` or `read_draws` returned.
        gebm: adds `energy_x` = E(B(z)), if it is not in the data.
        site: name of the site that holds the latents of `gebm`; by default the only one that fits.

    Returns:
        A `Diagnosis`: the numbers, and a list of warnings that is empty when nothing is wrong. Its text is the report:
        `print(diagnose(mcmc))`.

    Raises:
        ImportError: without ArviZ, naming the extra to install.
        TypeError: if `data` is neither an MCMC object nor ArviZ data, or `gebm` no `GEBM`.
        ValueError: if there is no posterior, or fewer than 8 draws of each chain.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC, NUTS
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> mcmc = MCMC(NUTS(lambda: pyro.sample("z", gebm.latent)), 20, 10, disable_progbar=True)
        >>> mcmc.run()
        >>> found = diagnose(mcmc, gebm=gebm)  # `print` it
        >>> found.num_chains, found.num_draws, found.num_divergences
        (1, 20, 0)
    """
    if gebm is not None:
        instance("gebm", gebm, GEBM)
    if not hasattr(data, "groups"):
        expected = "pyro.infer.MCMC that has run, or what to_arviz or read_draws returned"
        instance("data", data, AbstractMCMC, expected)
        data = to_arviz(data, gebm, site, log_likelihood=False)
    return core.diagnose(data, None if gebm is None else lambda posterior: energy_of_site(gebm, posterior, site))
