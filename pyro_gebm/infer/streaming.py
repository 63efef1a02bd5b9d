"""Long runs: draws to a file while sampling."""

import os
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import torch

from gebm.fingerprint import Fingerprint
from gebm.streaming import stream
from gebm.validation import instance, mapping, names
from pyro_gebm.infer.vectorized import VectorizedMCMC
from pyro_gebm.training.checkpoints import delete_checkpoints, read_latest_checkpoint, write_checkpoint

__all__ = ["stream_draws"]


def stream_draws(
    mcmc: VectorizedMCMC,
    path: str | os.PathLike[str],
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    *,
    chunk_size: int = 1000,
    resume: bool = False,
    allow: Collection[str] = (),
    progress_bar: bool = True,
) -> Any:
    """Run a kernel and write its draws to a file as they come, at constant memory.

    A path that ends in ".zarr" is a Zarr store, which many processes may write, each its own chains: with a
    `process_group`, all call this alike. Any other is a NetCDF file of one process.

    Only the latent sites are kept (`decode` computes x from z), with every statistic. After each
    chunk the state of the chains (positions, velocities, adaptation, random state) is written beside the file, to
    `<path>.state`. A run that was killed at any moment continues from there with `resume=True`, and ends with the same
    draws as an uninterrupted one. With another number of processes it goes on with other random numbers.

    Args:
        mcmc: a `VectorizedMCMC`.
        path: the file, or the store, which all processes must see.
        model_args: arguments of the model.
        model_kwargs: its keyword arguments.
        chunk_size: draws of each chain that are in memory at once.
        resume: continue the file at `path`, if there is one.
        allow: what may differ from the run that wrote the file, such as `("kernel",)`. Else kernel, model arguments,
            chains and warm-up are compared with its own, and the error names what differs.
        progress_bar: whether to show one.

    Returns:
        The draws, as `read_draws` returns them.

    Raises:
        FileExistsError: if there is a file at `path`, without `resume`.
        ImportError: without h5netcdf or zarr, naming the extra to install.
        TypeError: if `mcmc` is not a `VectorizedMCMC`.
        OSError: if the file cannot be made there, before the warm-up.
        ValueError: for a chunk size below 1, a site whose name a file cannot hold (before the warm-up), a file of
            another run or another size, or several processes and no store.

    Example:
        >>> import tempfile, pyro, pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> from pyro_gebm.infer import GHMC
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = GHMC(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = VectorizedMCMC(kernel, num_samples=40, warmup_steps=50, num_chains=4)
        >>> path = tempfile.mkdtemp() + "/draws.nc"
        >>> draws = stream_draws(mcmc, path, chunk_size=20, progress_bar=False)
        >>> draws["posterior"]["z"].shape
        (4, 40)
    """
    instance("mcmc", mcmc, VectorizedMCMC)
    allow = names("allow", allow)
    model_args = instance("model_args", model_args, (tuple, list))
    model_kwargs = {} if model_kwargs is None else mapping("model_kwargs", model_kwargs)
    start = partial(_Chains, mcmc, model_args, model_kwargs, allow)
    return stream(path, start, chunk_size=chunk_size, resume=resume, progress_bar=progress_bar)


class _Chains:
    """The chains of a kernel, as `gebm.streaming` runs them."""

    def __init__(self, mcmc, model_args, model_kwargs, allow):
        self.mcmc, self.kernel, self.allow, self.processes = mcmc, mcmc.kernel, allow, mcmc.processes
        self.num_chains, self.num_draws, self.own_chains = mcmc.num_chains, mcmc.num_samples, mcmc.own_chains
        self.rank, self.num_processes = self.processes.rank, self.processes.size
        mcmc.start(*model_args, **model_kwargs)
        self.fingerprint = Fingerprint.of(
            kernel=self.kernel,
            model_args=(model_args, model_kwargs),
            num_chains=mcmc.num_chains,
            num_warmup=mcmc.warmup_steps,
        )

    def variables(self):
        groups = {
            "posterior": self.mcmc.constrained(self.kernel.positions()),
            "sample_stats": self.kernel.statistics(),
        }
        return {
            name: (tuple(value.shape[1:]), np.dtype(str(value.dtype).removeprefix("torch.")), group)
            for group, values in groups.items()
            for name, value in values.items()
        }

    def warm_up(self):
        self.mcmc.warm_up()

    def draw(self, num):
        return [{name: value.numpy() for name, value in group.items()} for group in self.mcmc.draw(num)]

    def save(self, folder, num_draws):
        parts = self.processes.of_all(_on_device(self.kernel.state_dict(), "cpu"))
        if self.rank == 0:
            more = {"parts": parts[1:]} if self.num_processes > 1 else {}
            write_checkpoint(folder, num_draws, {**parts[0], **more, "num_draws": num_draws}, self.fingerprint)
        self.wait()

    def load(self, folder):
        device = next(iter(self.kernel.positions().values())).device
        check = partial(self.fingerprint.check, allow=self.allow, source=folder)
        first = read_latest_checkpoint(folder, device, check)
        num_draws, parts = first.pop("num_draws"), [first, *first.pop("parts", [])]
        if len(parts) == self.num_processes:
            self.kernel.load_state_dict(parts[self.rank])
            return num_draws
        if not getattr(self.kernel, "of_chains", {}):
            raise ValueError(
                f"Expected {len(parts)} processes, with which the run at {folder} began, for a kernel without "
                f"`of_chains`; got {self.num_processes}."
            )
        self.kernel.load_state_dict(self._own_part(parts))
        self.processes.own_stream(num_draws)
        return num_draws

    def _own_part(self, parts):
        """The state of this process's chains, out of those of another number of processes."""

        def own(values, axis):
            if isinstance(values[0], dict):
                return {name: own([value[name] for value in values], axis) for name in values[0]}
            chains = torch.cat(values, axis)
            return chains.narrow(axis, self.own_chains.start, self.own_chains.stop - self.own_chains.start)

        of_chains = self.kernel.of_chains
        return parts[0] | {name: own([part[name] for part in parts], axis) for name, axis in of_chains.items()}

    def forget(self, folder):
        delete_checkpoints(folder)

    def wait(self):
        self.processes.wait()


def _on_device(tree: Any, device: Any) -> Any:
    """Nested dictionaries with their tensors on a device."""
    if isinstance(tree, dict):
        return {name: _on_device(value, device) for name, value in tree.items()}
    return tree.to(device) if isinstance(tree, torch.Tensor) else tree
