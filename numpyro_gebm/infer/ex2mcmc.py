"""The global-local kernel of Ex2MCMC as a NumPyro kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import random
from jax.flatten_util import ravel_pytree

from gebm.langevin import StepInfo
from gebm.validation import integer, probability
from numpyro_gebm.dynamics.isir import isir
from numpyro_gebm.dynamics.keys import fold_in
from numpyro_gebm.dynamics.metropolis import accepts, choose, diverges
from numpyro_gebm.dynamics.steps import overdamped_step
from numpyro_gebm.infer.kernel import LangevinKernel
from numpyro_gebm.infer.proposal import of_distributions, of_prior
from numpyro_gebm.infer.state import LangevinState, unraveler

__all__ = ["Ex2MCMC"]


class _Target(NamedTuple):
    """`potential_and_grad`, the potential of one flat position, and the law of candidates over such positions."""

    potential_and_grad: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    potential: Callable[[jax.Array], jax.Array]
    draw: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[jax.Array], jax.Array]

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.potential_and_grad(z)


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
        proposal: q, a pytree of distributions over unconstrained sites, as the position is one of arrays; None is the
            prior of the model, and with `potential_fn` there is none.
        num_steps: steps a draw.

    Raises:
        ValueError: also if `proposal` is not given with `potential_fn`, is not over the sites, or if the prior of a
            site cannot be drawn from.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = Ex2MCMC(lambda: numpyro.sample("z", gebm.latent), num_candidates=16)
        >>> mcmc = MCMC(kernel, num_warmup=50, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["z"].shape
        (20,)
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

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any = None,
        model_args: tuple[Any, ...] = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> LangevinState:
        state = super().init(rng_key, num_warmup, init_params, model_args, model_kwargs)
        drawn = jax.eval_shape(self._proposal(model_args, model_kwargs or {}).draw, random.key(0))
        shapes = jax.tree.map(jnp.shape, drawn)
        expected = jax.tree.map(lambda x: jnp.shape(x)[state.i.ndim :], state.z)
        if shapes != expected:
            raise ValueError(f"Expected `proposal` to have draws of shape {expected}; got {shapes}.")
        return state

    def _proposal(self, model_args, model_kwargs):
        if self.proposal is not None:
            return of_distributions(self.proposal)
        return of_prior(cast(Callable[..., Any], self.model), model_args, model_kwargs)

    def _target(self, state, model_args, model_kwargs):
        unravel, potential = unraveler(state.z), self._potential(model_args, model_kwargs)
        proposal, dtype = self._proposal(model_args, model_kwargs), state.v.dtype
        return _Target(
            super()._target(state, model_args, model_kwargs),
            lambda z: potential(unravel(z)),
            lambda key: ravel_pytree(proposal.draw(key))[0].astype(dtype),
            lambda z: jnp.asarray(proposal.log_prob(unravel(z)), dtype),
        )

    def step(self, rng_key, chains, potential_and_grad, step_size, adapt_state):
        target: Any = potential_and_grad
        log_weight = lambda z, potential: -potential - target.log_prob(z)  # noqa: E731

        def propose(key):
            z = target.draw(key)
            return z, log_weight(z, target.potential(z))

        start = chains.kinetic
        move = jax.vmap(partial(isir, propose=propose, num_candidates=self.num_candidates))
        now = jax.vmap(log_weight)(start.z, start.potential_energy)
        z, _, global_accept_prob = move(fold_in(rng_key, 2), start.z, now)
        potential_energy, z_grad = target(z)
        start = start._replace(z=z, grad_point=z, potential_energy=potential_energy, z_grad=z_grad)
        end, error = overdamped_step(rng_key, start, target, step_size, adapt_state.scale)
        kinetic = choose(accepts(fold_in(rng_key, 1), error), end, start)
        chains = chains._replace(kinetic=kinetic, slice=jnp.nan_to_num(global_accept_prob))
        return chains, StepInfo(error, diverges(error), jnp.full_like(chains.slice, 2, int))
