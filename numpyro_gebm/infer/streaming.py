"""Long runs: draws to a file while sampling."""

import os
from collections.abc import Collection
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from jax import lax, random
from numpyro.infer import MCMC
from numpyro.util import is_prng_key

from gebm.arviz_data import named_statistics
from gebm.fingerprint import Fingerprint
from gebm.streaming import stream
from gebm.validation import instance, mapping, names
from numpyro_gebm.devices import Devices, on_host, own_rows, placed_like, wait
from numpyro_gebm.infer.chain_kernel import ChainKernel
from numpyro_gebm.infer.sharded import Sharded
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
    """Run a kernel and write its draws to a file as they come, at constant memory.

    A path that ends in ".zarr" is a Zarr store, which many processes may write, each its own chains: under
    `jax.distributed`, with `chain_method=sharded(mesh)`, all call this alike. Others are NetCDF files of one process.

    Only the latent sites are kept (no deterministic ones: `decode` computes x from z), with every statistic. After each
    chunk the state of the chains (positions, velocities, adaptation, random state) is written beside the file, to
    `<path>.state`. A run that was killed at any moment continues from there with `resume=True`, and ends with the same
    draws as an uninterrupted one, also with another number of devices or processes.

    Args:
        mcmc: a `numpyro.infer.MCMC` with a kernel of `infer` or another `infer.ChainKernel`; its chains run together.
        path: the file, or the store, which all processes must see.
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
        ImportError: without h5netcdf or zarr, naming the extra to install.
        TypeError: if `mcmc` is not a NumPyro `MCMC`, or its kernel not a `ChainKernel`.
        OSError: if the file cannot be made there, before the warm-up.
        ValueError: for a chunk size below 1, a site whose name a file cannot hold (before the warm-up), a file of
            another run or another size, or several processes and no store.

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
    instance("mcmc", mcmc, MCMC, "numpyro.infer.MCMC")
    hint = "Use a kernel of `infer`, or see `infer.ChainKernel`."
    instance("the kernel of mcmc", mcmc.sampler, ChainKernel, hint=hint)
    allow = names("allow", allow)
    model_args = instance("model_args", model_args, (tuple, list))
    model_kwargs = {} if model_kwargs is None else mapping("model_kwargs", model_kwargs)
    start = partial(_Chains, mcmc, model_args, model_kwargs, rng_key, init_params, allow)
    return stream(path, start, chunk_size=chunk_size, resume=resume, progress_bar=progress_bar)


class _Chains:
    """The chains of a kernel, as `gebm.streaming` runs them."""

    def __init__(self, mcmc, model_args, model_kwargs, rng_key, init_params, allow):
        self.mcmc, self.kernel, self.allow = mcmc, mcmc.sampler, allow
        self.num_chains, self.num_draws = mcmc.num_chains, mcmc.num_samples // mcmc.thinning
        devices = mcmc.chain_method.devices if isinstance(mcmc.chain_method, Sharded) else Devices(None)
        devices.check_divides("num_chains", mcmc.num_chains)
        self.rank, self.num_processes = devices.rank, devices.num_processes
        keys = typed(rng_key)
        keys = random.split(keys, mcmc.num_chains) if is_prng_key(keys) else keys
        keys, init_params = devices.placed_rows((keys, init_params))
        self.own_chains, _ = own_rows(random.key_data(keys))
        self.state = self.kernel.init(keys, mcmc.num_warmup, init_params, model_args, model_kwargs)
        self._warm, self._draw = _compiled(mcmc, self.kernel, model_args, model_kwargs)
        self.fingerprint = Fingerprint.of(
            kernel=self.kernel,
            model_args=(model_args, model_kwargs),
            num_chains=mcmc.num_chains,
            num_warmup=mcmc.num_warmup,
            thinning=mcmc.thinning,
        )

    def variables(self):
        _, draws = jax.eval_shape(lambda state: self._draw(state, 1), self.state)
        return {
            name: (value.shape[2:], value.dtype, group)
            for group, values in zip(("posterior", "sample_stats"), draws)
            for name, value in values.items()
        }

    def warm_up(self):
        num_warmup = self.mcmc.num_warmup
        for start in range(0, num_warmup, WARMUP_CHUNK):
            self.state = self._warm(self.state, min(WARMUP_CHUNK, num_warmup - start))
            if self.kernel.warmup_converged(self.state):
                break
        self.state = self.kernel.end_warmup(self.state)

    def draw(self, num):
        self.state, draws = self._draw(self.state, num)

        def own(value):
            return np.swapaxes(own_rows(value, 1, self.own_chains)[1], 0, 1)

        return [{name: own(value) for name, value in group.items()} for group in draws]

    def save(self, folder, num_draws):
        saved = jax.tree.map(on_host, self.kernel.save(self.state))  # all processes take part, and the first one writes
        if self.rank == 0:
            write_checkpoint(folder, num_draws, (saved, np.asarray(num_draws)), self.fingerprint)
        self.wait()

    def load(self, folder):
        check, like = partial(self.fingerprint.check, allow=self.allow, source=folder), self.kernel.save(self.state)
        saved, num_draws = read_latest_checkpoint(folder, (like, np.zeros((), int)), check=check)
        self.state = self.kernel.restore(placed_like(saved, like))
        return int(num_draws)

    def forget(self, folder):
        delete_checkpoints(folder)

    def wait(self):
        if self.num_processes > 1:
            wait()


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
