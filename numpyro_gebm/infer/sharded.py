"""Chains divided between the devices of a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from numpyro.infer import MCMC

from numpyro_gebm.devices import Devices
from numpyro_gebm.infer.chain_kernel import ChainKernel

__all__ = ["Sharded", "sharded"]


class Sharded:
    """A `chain_method` of NumPyro's `MCMC`: see `sharded`.

    Args:
        devices: `Devices` that divide the chains.
    """

    def __init__(self, devices: Devices) -> None:
        self.devices = devices

    def __call__(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The chains of a run, of arguments with a leading axis of chains."""
        mcmc = getattr(getattr(run, "func", None), "__self__", None)
        if not isinstance(mcmc, MCMC):
            raise TypeError("Expected to be called by NumPyro's MCMC. Use `MCMC(kernel, chain_method=sharded(mesh))`.")
        self.devices.check_divides("num_chains", mcmc.num_chains)
        own = isinstance(mcmc.sampler, ChainKernel)
        return partial(self._together, run, mcmc) if own else partial(self._apart, run)

    def _together(self, run, mcmc, args):
        """One ensemble, adapted together; the compiler divides it as its random keys are divided."""
        mcmc.chain_method = "vectorized"  # for the parts of the run that ask
        try:
            draws, state = run(self._placed(args, mcmc.num_chains))
        finally:
            mcmc.chain_method = self
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), draws), state

    def _placed(self, args, num_chains):
        """Arguments on the mesh: what has an axis of chains by rows, what chains share everywhere."""

        def place(x):
            has_chains = jnp.ndim(x) > 0 and len(x) == num_chains
            return self.devices.placed_rows(x) if has_chains else self.devices.everywhere(x)

        return jax.tree.map(place, args)

    def _apart(self, run, args):
        """A program on every device for its chains, which know nothing of the others."""
        rows = PartitionSpec(self.devices.axis)
        mapped = jax.shard_map(jax.vmap(run), mesh=self.devices.mesh, in_specs=(rows,), out_specs=rows, check_vma=False)
        return jax.jit(mapped)(self.devices.placed_rows(args))


def sharded(mesh: Mesh, axis: str = "data") -> Sharded:
    """Chains divided between the devices of a mesh, of one process or of many.

    Kernels of `infer` adapt over all chains, and draw what they draw with `chain_method="vectorized"` on one device.
    Chains of NumPyro's own kernels, such as `NUTS`, adapt each for itself, as always, and devices do not wait for each
    other. Under `jax.distributed` every process calls `run` with the same key and arguments; draws are then arrays of
    all processes, of which each has its chains (`to_arviz` and `stream_draws` know that).

    Args:
        mesh: a `jax.sharding.Mesh`.
        axis: that axis of it.

    Returns:
        What NumPyro's `MCMC` takes as `chain_method`. The number of chains must be a multiple of the devices.

    Raises:
        TypeError: if `mesh` is no mesh.
        ValueError: if it has no such axis; when run, if the devices cannot divide the chains evenly.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> from numpyro_gebm.infer import GHMC
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = GHMC(lambda: numpyro.sample("z", gebm.latent))
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> mcmc = MCMC(kernel, num_warmup=50, num_samples=20, num_chains=8 * jax.device_count(),
        ...             chain_method=sharded(mesh), progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples(group_by_chain=True)["z"].shape[1:]
        (20,)
    """
    devices = Devices(mesh, axis)
    if devices.mesh is None:
        raise TypeError('Expected mesh to be a jax.sharding.Mesh; got None. Use chain_method="vectorized" without one.')
    return Sharded(devices)
