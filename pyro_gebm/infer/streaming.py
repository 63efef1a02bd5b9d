"""Long runs: draws to a file while sampling."""

import os
import pathlib
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from gebm.draw_file import DrawFile, check_file, read_draws, refuse_existing
from gebm.fingerprint import Fingerprint
from gebm.validation import flag, instance, integer, mapping, names, path_of
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
    """Run a kernel and write its draws to a NetCDF file as they come, at constant memory.

    Only the latent sites are kept (`decode` computes x from z), with every statistic. After each
    chunk the state of the chains (positions, velocities, adaptation, random state) is written beside the file, to
    `<path>.state`. A run that was killed at any moment continues from there with `resume=True`, and ends with the same
    draws as an uninterrupted one.

    Args:
        mcmc: a `VectorizedMCMC`.
        path: the file.
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
        ImportError: without h5netcdf, naming the extra to install.
        TypeError: if `mcmc` is not a `VectorizedMCMC`.
        OSError: if the file cannot be made there, before the warm-up.
        ValueError: for a chunk size below 1, a site whose name a file cannot hold (before the warm-up), or a file of
            another run or another size.

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
    chunk_size = integer("chunk_size", chunk_size)
    path, allow = pathlib.Path(path_of("path", path)), names("allow", allow)
    model_args = instance("model_args", model_args, (tuple, list))
    model_kwargs = {} if model_kwargs is None else mapping("model_kwargs", model_kwargs)
    folder, resume = path.with_name(f"{path.name}.state"), flag("resume", resume) and path.exists()
    if not resume:
        refuse_existing(path)
        delete_checkpoints(folder)
    mcmc.start(*model_args, **model_kwargs)
    kernel, total, num_draws = mcmc.kernel, mcmc.num_samples, 0
    fingerprint = Fingerprint.of(
        kernel=kernel,
        model_args=(model_args, model_kwargs),
        num_chains=mcmc.num_chains,
        num_warmup=mcmc.warmup_steps,
    )
    if not resume:
        check_file(path, mcmc.num_chains, total, _variables(mcmc))
    with tqdm(total=total, disable=not flag("progress_bar", progress_bar), unit="draw") as bar:
        if resume:
            device = next(iter(kernel.positions().values())).device
            saved = read_latest_checkpoint(folder, device, partial(fingerprint.check, allow=allow, source=folder))
            num_draws = saved.pop("num_draws")
            kernel.load_state_dict(saved)
        else:
            bar.set_description("Warmup")
            mcmc.warm_up()
            write_checkpoint(folder, 0, {**kernel.state_dict(), "num_draws": 0}, fingerprint)
            DrawFile.create(path, mcmc.num_chains, total, _variables(mcmc)).close()
        with DrawFile.open(path) as file:
            file.check_size(total)
            file.rewind(num_draws)
            bar.set_description("Sample")
            bar.update(file.num_draws_written)
            while (left := total - file.num_draws_written) > 0:
                file.append(*_arrays(mcmc.draw(min(chunk_size, left))))
                num_draws = file.num_draws_written
                write_checkpoint(folder, num_draws, {**kernel.state_dict(), "num_draws": num_draws}, fingerprint)
                bar.update(min(chunk_size, left))
    return read_draws(path)


def _arrays(groups):
    return [{name: value.numpy() for name, value in group.items()} for group in groups]


def _variables(mcmc):
    groups = {"posterior": mcmc.constrained(mcmc.kernel.positions()), "sample_stats": mcmc.kernel.statistics()}
    return {
        name: (tuple(value.shape[1:]), np.dtype(str(value.dtype).removeprefix("torch.")), group)
        for group, values in groups.items()
        for name, value in values.items()
    }
