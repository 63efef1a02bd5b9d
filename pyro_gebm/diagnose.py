"""A verdict in words on a run of a sampler."""

from typing import Any

from gebm import diagnose as core
from gebm.diagnose import Diagnosis
from pyro_gebm.gebm import GEBM
from pyro_gebm.to_arviz import energy_of_site, to_arviz

__all__ = ["Diagnosis", "diagnose"]


def diagnose(data: Any, *, gebm: GEBM | None = None, site: str | None = None) -> Diagnosis:
    """Whether the draws of a run can be trusted, in words, and what to do if not.

    R-hat and effective sample size of every scalar quantity of the posterior and of `energy_x` and `lp`; divergences,
    BFMI, acceptance, bias of unadjusted kernels, warm-up, and the modes that each chain visited. A statistic that was
    not recorded is left out.

    Of more than 400,000 draws in all, R-hat and effective sample sizes are those of every k-th (the report says so);
    modes are looked for in some 8,000.

    Args:
        data: an MCMC object that `to_arviz` takes, or what `to_arviz` or `read_draws` returned.
        gebm: adds `energy_x` = E(B(z)), if it is not in the data.
        site: name of the site that holds the latents of `gebm`; by default the only one that fits.

    Returns:
        A `Diagnosis`: the numbers, and a list of warnings that is empty when nothing is wrong. Its text is the report:
        `print(diagnose(mcmc))`.

    Raises:
        ImportError: without ArviZ, naming the extra to install.
        TypeError: if `data` is neither an MCMC object nor ArviZ data.
        ValueError: if there is no posterior, or fewer than 8 draws of each chain.

    Example:
        >>> import tempfile, numpy as np
        >>> from pyro_gebm import DrawFile, read_draws
        >>> path = tempfile.mkdtemp() + "/draws.nc"
        >>> with DrawFile.create(path, num_chains=4, num_draws=500, variables={"z": ((), "f8", "posterior")}) as file:
        ...     file.append({"z": np.random.default_rng(0).normal(size=(4, 500))})
        >>> print(diagnose(read_draws(path)))
        4 chains of 500 draws: no problems found.
        ok Largest R-hat is 1.001 (z); at most 1.01 is recommended.
        ok Smallest bulk ESS is 2003 (z); at least 400 is recommended.
        ok Smallest tail ESS is 2056 (z); at least 400 is recommended.
        ok One mode found, visited by every chain. A mode that no chain found cannot be detected.
    """
    if not hasattr(data, "groups"):
        data = to_arviz(data, gebm, site)
    return core.diagnose(data, None if gebm is None else lambda posterior: energy_of_site(gebm, posterior, site))
