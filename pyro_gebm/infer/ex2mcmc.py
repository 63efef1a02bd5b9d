"""The global-local kernel of Ex2MCMC as a Pyro kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch

from gebm.langevin import StepInfo
from gebm.validation import integer, probability
from pyro_gebm.dynamics.isir import isir
from pyro_gebm.dynamics.metropolis import accepts, choose, diverges
from pyro_gebm.dynamics.steps import overdamped_step
from pyro_gebm.infer.kernel import LangevinKernel
from pyro_gebm.infer.proposal import Proposal, of_distributions, of_prior

__all__ = ["Ex2MCMC"]

#: Candidates of all chains whose potentials are computed at once.
BATCH_SIZE = 4096


@dataclass(kw_only=True, eq=False)
class Ex2MCMC(LangevinKernel):
    r"""Global-local kernel: one of K fresh prior draws may take the place of the position, then a MALA step.

    The global move (i-SIR) keeps one of the position and K draws $z_i \sim q$ of the prior of the latent sites, GEBMs
    at their base, with probability proportional to the weights

    .. math:: w(z) = e^{-U(z)} / q(z)

    which for the latent of a GEBM are $e^{-\beta E(B(z))}$; the local one is the step of `MALA`. Both leave the law
    invariant for every K. Chains move between modes of any distance as long as some of the K draws have weight:
    `global_accept_prob`, recorded with every draw, is the probability of leaving the position, and where it is next to
    0 the kernel is MALA. A step costs K potentials and two gradients. Source: arXiv:2111.02702.

    `model` or `potential_fn` and the other arguments are those of `LangevinKernel`, as is what is raised.

    Args:
        step_size: initial h of the local step, in units of the latent over $\sigma$.
        target_accept_prob: mean acceptance probability of local steps that the warm-up adapts the step size to.
        num_candidates: K.
        proposal: q, a dict of distributions over unconstrained sites; None is the prior of the model, and with
            `potential_fn` there is none. A model with a prior that `torch.func.vmap` cannot draw (Dirichlet,
            Exponential, StudentT, ...) is run once for every candidate, which is slow.
        num_steps: steps a draw.

    Raises:
        ValueError: also if `proposal` is not given with `potential_fn`, is not over the sites, or if the prior of a
            site cannot be drawn from.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> from pyro_gebm.infer import VectorizedMCMC
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = Ex2MCMC(lambda: pyro.sample("z", gebm.latent), num_candidates=16)
        >>> mcmc = VectorizedMCMC(kernel, num_samples=20, warmup_steps=50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["z"].shape
        torch.Size([160])
    """

    target_accept_prob: Annotated[float, probability] = 0.574
    num_candidates: Annotated[int, integer] = 64
    proposal: Any = None
    num_steps: Annotated[int, integer] = 1

    default_fields = (*LangevinKernel.default_fields, "global_accept_prob")

    def __post_init__(self):
        super().__post_init__()
        if self.model is None and self.proposal is None:
            raise ValueError(
                "Expected `proposal` with `potential_fn`, distributions of the unconstrained sites that global moves "
                "draw from; got None."
            )
        self._proposal: Any = None
        self._potential_of_candidates: Any = None

    def setup_chains(
        self,
        warmup_steps: int,
        num_chains: int,
        initial_params: dict[str, torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Start many chains: see `ChainKernel`."""
        super().setup_chains(warmup_steps, num_chains, initial_params, *args, **kwargs)
        self._proposal, self._potential_of_candidates = self._proposal_of_run(args, kwargs), self._potential
        if self.potential_fn is not None:
            self._potential_of_candidates = torch.func.vmap(self.potential_fn)
        shapes = {name: tuple(value.shape[1:]) for name, value in self._proposal.draw(2).items()}
        expected = {name: tuple(shape) for name, shape in self._shapes.items()}
        if shapes != expected:
            raise ValueError(f"Expected `proposal` to have draws of shape {expected}; got {shapes}.")

    def _proposal_of_run(self, args, kwargs) -> Proposal:
        if self.proposal is not None:
            return of_distributions(self.proposal)
        return of_prior(cast(Callable[..., Any], self.model), args, kwargs, self.transforms or {})

    def _log_weight(self, z, potential_energy):
        return -potential_energy - self._proposal.log_prob(self._unflattened(z)).to(potential_energy)

    def step(self, chains, potential_and_grad, step_size, adapt_state, last):
        start = chains.kinetic
        shape = start.z.shape

        def propose(num):
            params = self._proposal.draw(num * shape[0])
            z = self._flat(params).to(start.z)
            log_weight = self._log_weight(z, self._potential_of_candidates(self._unflattened(z)))
            return z.reshape(num, *shape), log_weight.reshape(num, shape[0])

        now, at_once = self._log_weight(start.z, start.potential_energy), max(1, BATCH_SIZE // shape[0])
        z, _, global_accept_prob = isir(start.z, now, propose, self.num_candidates, at_once)
        potential_energy, z_grad = potential_and_grad(z)
        start = start._replace(z=z, grad_point=z, potential_energy=potential_energy, z_grad=z_grad)
        end, error = overdamped_step(start, potential_and_grad, step_size, adapt_state.scale)
        kinetic = choose(accepts(error), end, start)
        chains = chains._replace(kinetic=kinetic, slice=global_accept_prob.nan_to_num(0.0))
        return chains, StepInfo(error, diverges(error), 2)
