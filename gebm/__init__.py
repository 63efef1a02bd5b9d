"""What `numpyro_gebm` and `pyro_gebm` share: draws on disk, diagnostics, model files. It needs neither framework.

Models, kernels and training are in the host packages: `import numpyro_gebm` or `import pyro_gebm`.
"""

from importlib import metadata, util

__all__ = ["__version__", "hosts"]

try:
    __version__ = metadata.version("gebm")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

_NEEDS = {"numpyro": ("jax", "numpyro", "equinox", "optax"), "pyro": ("torch", "pyro")}


def hosts() -> dict[str, bool]:
    """Which hosts are installed; none is imported. In a checkout, `pip install ".[numpyro]"` installs one.

    Returns:
        For "numpyro" and "pyro", whether `numpyro_gebm` and `pyro_gebm` can be imported.

    Example:
        >>> import gebm
        >>> list(gebm.hosts())
        ['numpyro', 'pyro']
    """
    return {host: all(util.find_spec(name) is not None for name in names) for host, names in _NEEDS.items()}
