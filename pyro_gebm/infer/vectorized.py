"""Many chains as one tensor."""

from typing import Any

import torch
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from tqdm import tqdm

from gebm.fingerprint import describe
from gebm.validation import flag, instance, integer, mapping, optional, probability
from pyro_gebm.infer.chain_kernel import ChainKernel
from pyro_gebm.processes import Processes

__all__ = ["VectorizedMCMC"]

#: Draws kept on the device before they are moved to the host.
CHUNK = 100


class VectorizedMCMC(AbstractMCMC):
    """Run the chains of a kernel together, as one tensor: hundreds cost a few times as much as one.

    The API is that of Pyro's `MCMC`. The chains are adapted together. Draws are moved to the host in chunks; between
    them nothing is read from the device. Several threads may run at once, each with a kernel of its own; they take
    turns with their models, because Pyro has one stack of handlers for the whole process.

    Args:
        kernel: a kernel of `infer` or another `infer.ChainKernel`, on a model or a `potential_fn` (which is written for
            one chain; it is batched by `torch.func.vmap`).
        num_samples: draws a chain.
        warmup_steps: steps of the warm-up, at most; it ends early once it has converged, so be generous.
            None takes `num_samples`.
        num_chains: number of chains.
        thinning: iterations a draw.
        initial_params: dict of unconstrained tensors with a leading axis of `num_chains`; None draws them.
        disable_progbar: show no progress bar.
        process_group: of `torch.distributed`, to divide the chains between its processes. Each calls `run` with the
            same arguments. They adapt together, with the same step size, and then draw without waiting for each other,
            from random numbers of their own that follow from the first one's seed. All have the draws of all chains in
            the end; `stream_draws` lets each write its own.

    Attributes:
        device: where the chains are; draws are moved to the host.
        own_chains: the chains of this process, a slice.

    Raises:
        TypeError: if the kernel is not a `ChainKernel`.
        ValueError: for numbers out of range, `initial_params` of another number of chains, chains that the processes
            cannot divide evenly, or a model with discrete latent sites, subsampling, or supports that change with other
            latent sites.
        RuntimeError: while running, if the potential is NaN for 100 draws in a row.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> from pyro_gebm.infer import GHMC
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = GHMC(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = VectorizedMCMC(kernel, num_samples=20, warmup_steps=50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples(group_by_chain=True)["z"].shape)
        (8, 20)
    """

    def __init__(
        self,
        kernel: ChainKernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 1,
        *,
        thinning: int = 1,
        initial_params: dict[str, torch.Tensor] | None = None,
        disable_progbar: bool = False,
        process_group: Any = None,
    ):
        hint = "Use Pyro's `MCMC` for it, or see `infer.ChainKernel`."
        instance("kernel", kernel, ChainKernel, "kernel of `pyro_gebm.infer` or another ChainKernel", hint)
        self.num_samples, num_chains = integer("num_samples", num_samples), integer("num_chains", num_chains)
        self.thinning = integer("thinning", thinning)
        super().__init__(kernel, num_chains, None)
        self.warmup_steps = num_samples if warmup_steps is None else integer("warmup_steps", warmup_steps, minimum=0)
        self.disable_progbar = flag("disable_progbar", disable_progbar)
        self._initial_params = optional(mapping)("initial_params", initial_params)
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self.device: torch.device | None = None
        self._samples: dict[str, torch.Tensor] = {}
        self._diagnostics: list[dict[str, Any]] = []
        if initial_params is not None:
            _check_initial_params(initial_params, num_chains)
        self.processes = Processes.given(process_group)
        self.processes.check_divides("num_chains", num_chains)
        each = num_chains // self.processes.size
        self.own_chains = slice(self.processes.rank * each, (self.processes.rank + 1) * each)

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run the warm-up and draw; arguments are those of the model."""
        self.start(*args, **kwargs)
        chunks, left = [], self.num_samples
        quiet = self.disable_progbar or self.processes.rank > 0
        with tqdm(total=self.warmup_steps + self.num_samples, disable=quiet, desc="Warmup") as bar:
            self.warm_up(bar)
            bar.set_description("Sample")
            while left > 0:
                chunks.append(self.draw(min(CHUNK, left)))
                left -= min(CHUNK, left)
                bar.update(self.warmup_steps + self.num_samples - left - bar.n)
                bar.set_postfix(self.kernel.logging())
        own = [
            {name: torch.cat([chunk[part][name] for chunk in chunks], 1) for name in chunks[0][part]} for part in (0, 1)
        ]
        parts = self.processes.of_all(own)
        self._samples, statistics = (
            {name: torch.cat([part[i][name] for part in parts]) for name in own[i]} for i in (0, 1)
        )
        self._diagnostics = [
            {
                "divergences": statistics["diverging"][chain].nonzero().flatten().tolist(),
                "acceptance rate": float(statistics["acceptance_rate"][chain].mean()),
                "sample_stats": {name: value[chain] for name, value in statistics.items()},
            }
            for chain in range(self.num_chains)
        ]

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Start the chains; arguments are those of the model."""
        self._args, self._kwargs = args, kwargs
        params, num = self._initial_params, self.own_chains.stop - self.own_chains.start
        self.kernel.processes = self.processes  # also where there is one: the kernel may come from another run
        if self.processes.size > 1:
            params = None if params is None else {name: value[self.own_chains] for name, value in params.items()}
            sizes = (self.num_chains, self.num_samples, self.warmup_steps, self.thinning)
            self.processes.check_same("(num_chains, num_samples, warmup_steps, thinning)", sizes)
            self.processes.check_same("the arguments of the model", describe((args, kwargs)))
            self.processes.own_stream()
        self.kernel.setup_chains(self.warmup_steps, num, params, *args, **kwargs)
        self.processes.check_same(
            "the latent sites", {name: tuple(value.shape) for name, value in self.kernel.positions().items()}
        )
        self.transforms = self.kernel.transforms
        self.device = next(iter(self.kernel.positions().values())).device

    def warm_up(self, bar: Any = None) -> None:
        """Run the warm-up, until it has converged or its steps are spent.

        Args:
            bar: a progress bar to move.
        """
        kernel = self.kernel
        for i in range(1, self.warmup_steps + 1):
            if kernel.warmup_converged():
                break
            kernel.advance()
            if i % CHUNK == 0:
                kernel.check()
                if bar is not None:
                    bar.update(i - bar.n)
                    bar.set_postfix(kernel.logging())
        kernel.end_warmup()
        if bar is not None:
            bar.update(self.warmup_steps - bar.n)

    def draw(self, num: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The next draws of all chains.

        Args:
            num: how many of each chain.

        Returns:
            Latent sites and statistics of the chains of this process: dicts of tensors on the host of shape
            `(own chains, num, ...)`.

        Raises:
            RuntimeError: if the potential was NaN 100 draws in a row in some chain.
        """
        draws, statistics = [], []
        for _ in range(num):
            for _ in range(self.thinning):
                self.kernel.advance()
            draws.append(self.kernel.positions())
            statistics.append(self.kernel.statistics())
        self.kernel.check()
        draws, statistics = (
            {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]} for rows in (draws, statistics)
        )
        # the transforms are where the model is
        return _on_host(self.constrained(draws)), _on_host(statistics)

    def constrained(self, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Values of the latent sites at unconstrained tensors."""
        return {name: self.transforms[name].inv(u) if name in self.transforms else u for name, u in params.items()}

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, torch.Tensor]:
        """Draws of the latent sites, on the host.

        Args:
            num_samples: draw that many with replacement; None gives all.
            group_by_chain: keep the axis of the chains.

        Returns:
            Dict of tensors of shape `(draws, ...)`, or `(chains, draws, ...)`.
        """
        if num_samples is not None:
            integer("num_samples", num_samples)
        return select_samples(self._samples, num_samples, flag("group_by_chain", group_by_chain))

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and R-hat of every site, divergences and acceptance rate of every chain."""
        result = diagnostics(self._samples)
        for name in ("divergences", "acceptance rate"):
            result[name] = {f"chain {i}": report[name] for i, report in enumerate(self._diagnostics)}
        return result

    def summary(self, prob: float = 0.9) -> None:
        """Print mean, standard deviation, quantiles, effective sample size and R-hat of every site.

        Args:
            prob: probability of the credible interval.
        """
        print_summary(self._samples, prob=probability("prob", prob))
        print(f"Number of divergences: {sum(len(report['divergences']) for report in self._diagnostics)}")


def _check_initial_params(params: dict[str, torch.Tensor], num_chains: int) -> None:
    for name, value in params.items():
        if not isinstance(value, torch.Tensor) or value.shape[:1] != (num_chains,):
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"Expected initial_params[{name!r}] to be a tensor with a leading axis of {num_chains}; got {got}."
            )


def _on_host(group: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in group.items()}
