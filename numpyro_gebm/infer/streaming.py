"""Long runs: draws to a file while sampling."""

import os
import pathlib
from collections.abc import Collection
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from jax import lax, random
from numpyro.infer import MCMC
from numpyro.util import is_prng_key
from tqdm import tqdm

from gebm.arviz_data import named_statistics
from gebm.draw_file import DrawFile, check_file, read_draws, refuse_existing
from gebm.fingerprint import Fingerprint
from gebm.validation import flag, instance, integer, mapping, names, path_of
from numpyro_gebm.infer.chain_kernel import ChainKernel
from numpyro_gebm.keys import typed
from numpyro_gebm.to_arviz import named_arrays
from numpyro_gebm.training.checkpoints import delete_checkpoints, read_latest_checkpoint, write_checkpoint

__all__ = ["stream_draws"]

#: Steps of the warm-up between two looks at whether it has converged.
WARMUP_CHUNK = 100


def stream_draws(
    mcmc: MCMC,
    path: str | os.PathLike[str],
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    *,
    rng_key: jax.Array,
    init_params: Any = None,
    chunk_size: int = 1000,
    resume: bool = False,
    allow: Collection[str] = (),
    progress_bar: bool = True,
) -> Any:
    """Run a kernel and write its draws to a NetCDF file as they come, at constant memory.

    Only the latent sites are kept (no deterministic ones: `decode` computes x from z), with every statistic. After each
    chunk the state of the chains (positions, velocities, adaptation, random state) is written beside the file, to
    `<path>.state`. A run that was killed at any moment continues from there with `resume=True`, and ends with the same
    draws as an uninterrupted one.

    Args:
        mcmc: a `numpyro.infer.MCMC` with a kernel of `infer` or another `infer.ChainKernel`; its chains run together.
        path: the file.
        model_args: arguments of the model.
        model_kwargs: its keyword arguments.
        rng_key: a JAX random key.
        init_params: where chains start, with a leading axis of `num_chains`; None draws it.
        chunk_size: draws of each chain that are in memory at once.
        resume: continue the file at `path`, if there is one.
        allow: what may differ from the run that wrote the file, such as `("kernel",)`. Else kernel, model arguments,
            chains, warm-up and thinning are compared with its own, and the error names what differs.
        progress_bar: whether to show one.

    Returns:
        The draws, as `read_draws` returns them.

    Raises:
        FileExistsError: if there is a file at `path`, without `resume`.
        ImportError: without h5netcdf, naming the extra to install.
        TypeError: if `mcmc` is not a NumPyro `MCMC`, or its kernel not a `ChainKernel`.
        OSError: if the file cannot be made there, before the warm-up.
        ValueError: for a chunk size below 1, a site whose name a file cannot hold (before the warm-up), or a file of
            another run or another size.

    Example:
        >>> import tempfile, jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> from numpyro_gebm.infer import GHMC
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = GHMC(lambda: numpyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_warmup=50, num_samples=40, num_chains=4, chain_method="vectorized")
        >>> path = tempfile.mkdtemp() + "/draws.nc"
        >>> draws = stream_draws(mcmc, path, rng_key=jax.random.key(0), chunk_size=20, progress_bar=False)
        >>> draws["posterior"]["z"].shape
        (4, 40)
    """
    kernel: Any = instance("mcmc", mcmc, MCMC, "numpyro.infer.MCMC").sampler
    instance("the kernel of mcmc", kernel, ChainKernel, hint="Use a kernel of `infer`, or see `infer.ChainKernel`.")
    chunk_size = integer("chunk_size", chunk_size)
    path, allow = pathlib.Path(path_of("path", path)), names("allow", allow)
    model_args = instance("model_args", model_args, (tuple, list))
    model_kwargs = {} if model_kwargs is None else mapping("model_kwargs", model_kwargs)
    folder, resume = path.with_name(f"{path.name}.state"), flag("resume", resume) and path.exists()
    if not resume:
        refuse_existing(path)
        delete_checkpoints(folder)
    keys = typed(rng_key)
    keys = random.split(keys, mcmc.num_chains) if is_prng_key(keys) else keys
    state = kernel.init(keys, mcmc.num_warmup, init_params, model_args, model_kwargs)
    warm, draw = _compiled(mcmc, kernel, model_args, model_kwargs)
    total, num_draws = mcmc.num_samples // mcmc.thinning, 0
    fingerprint = Fingerprint.of(
        kernel=kernel,
        model_args=(model_args, model_kwargs),
        num_chains=mcmc.num_chains,
        num_warmup=mcmc.num_warmup,
        thinning=mcmc.thinning,
    )
    if not resume:
        check_file(path, mcmc.num_chains, total, _variables(draw, state))
    with tqdm(total=total, disable=not flag("progress_bar", progress_bar), unit="draw") as bar:
        if resume:
            check = partial(fingerprint.check, allow=allow, source=folder)
            saved, num_draws = read_latest_checkpoint(folder, (kernel.save(state), np.zeros((), int)), check=check)
            state = kernel.restore(saved)
        else:
            bar.set_description("Warmup")
            state = _warmed_up(state, kernel, mcmc.num_warmup, warm)
            write_checkpoint(folder, 0, (kernel.save(state), np.zeros((), int)), fingerprint)
            DrawFile.create(path, mcmc.num_chains, total, _variables(draw, state)).close()
        with DrawFile.open(path) as file:
            file.check_size(total)
            file.rewind(int(num_draws))
            bar.set_description("Sample")
            bar.update(file.num_draws_written)
            while (left := total - file.num_draws_written) > 0:
                state, draws = draw(state, min(chunk_size, left))
                groups = [{name: np.swapaxes(value, 0, 1) for name, value in group.items()} for group in draws]
                file.append(*groups)
                num_draws = file.num_draws_written
                write_checkpoint(folder, num_draws, (kernel.save(state), np.asarray(num_draws)), fingerprint)
                bar.update(min(chunk_size, left))
    return read_draws(path)


def _warmed_up(state, kernel, num_warmup, warm):
    for start in range(0, num_warmup, WARMUP_CHUNK):
        state = warm(state, min(WARMUP_CHUNK, num_warmup - start))
        if kernel.warmup_converged(state):
            break
    return kernel.end_warmup(state)


def _compiled(mcmc, kernel, args, kwargs):
    """The next steps of a warm-up, and the next draws with their statistics, draws first."""

    def step(i, state):
        return kernel.sample(state, args, kwargs)

    statistics = [name for name in kernel.default_fields if name != kernel.sample_field]

    def collect(state, _):
        state = lax.fori_loop(0, mcmc.thinning, step, state)
        z = attrgetter(kernel.sample_field)(state)
        values = jax.vmap(kernel.postprocess_fn(args, kwargs))(z)
        if isinstance(z, dict):
            values = {name: values[name] for name in z}
        fields = {name: attrgetter(name)(state) for name in statistics}
        arrays = {name: value for name, value in fields.items() if hasattr(value, "shape")}
        return state, (named_arrays(values), named_statistics(arrays))

    warm = jax.jit(lambda state, num: lax.fori_loop(0, num, step, state))
    draw = jax.jit(lambda state, num: lax.scan(collect, state, length=num), static_argnums=1)
    return warm, draw


def _variables(draw, state):
    _, draws = jax.eval_shape(lambda state: draw(state, 1), state)
    return {
        name: (value.shape[2:], value.dtype, group)
        for group, values in zip(("posterior", "sample_stats"), draws)
        for name, value in values.items()
    }
