"""Kinetic Langevin dynamics as a Pyro kernel."""

import torch

from gebm.langevin import SPLITTINGS
from pyro_gebm.dynamics.metropolis import choose, diverges
from pyro_gebm.dynamics.steps import KineticState, energy_error, kinetic_step
from pyro_gebm.infer.initialization import init_to_prior
from pyro_gebm.infer.kernel import Chains, LangevinKernel, StepInfo

__all__ = ["KineticLangevin"]

#: Friction, where it is not given, times the length scale of the law: neither z nor z^2 then decorrelates slowly.
FRICTION = 1.0


class KineticLangevin(LangevinKernel):
    r"""Unadjusted kinetic (underdamped) Langevin dynamics, for `pyro.infer.MCMC` and `infer.VectorizedMCMC`.

    .. math:: dz = \sigma v\, dt, \qquad dv = -\sigma \nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

    One draw is `num_steps` steps of the splitting `integrator`, one gradient each. There is no Metropolis test: the
    law of the draws has a bias of second order in the step size (for BAOAB none in the positions of a Gaussian);
    `GHMC` is the adjusted twin. In the warm-up the step size follows the acceptance probability of its deterministic
    part, and stays below half the law's length scale. `kinetic_temperature` differs from 1 where the step is too large.
    Stable for a step size below 2 over the largest frequency. Source: arXiv:2003.05033 (the sampler, ABOBA),
    arXiv:1203.5428 (the splittings), arXiv:2104.09029 (UBU).

    A step that leads to a potential that is not finite is not taken; the velocity is then reversed, and the draw is
    reported as diverging. With ABOBA and UBU `potential_energy` is taken at the mid-point of the last step.

    Args:
        model: a Pyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a dict of unconstrained tensors (one chain) to a scalar; needs
            `initial_params`.
        step_size: initial h, in units of time (that of the latent over $\sigma$, as the velocity's scale is one).
        friction: $\gamma$, in units of inverse time; None is 1 over the length scale of the law, which the warm-up
            estimates; 0 is Hamiltonian dynamics.
        num_steps: steps a draw.
        integrator: one of "BAOAB", "ABOBA", "OBABO", "UBU".
        adapt_step_size: whether the warm-up adapts the step size.
        target_accept_prob: acceptance probability that a test of the deterministic part would have.
        adapt_mass_matrix: whether the warm-up adapts a diagonal mass, $1 / \sigma^2$; else $\sigma = 1$.
        step_size_schedule: callable from the number of draws since the warm-up to a factor of the step size, such as
            `lambda i: 0.1 ** (i // 200)`; None for none.
        init_strategy: where chains start; a draw of every site's base prior by default.
        transforms: transforms of constrained sites, as for Pyro's HMC; found automatically where None.

    Raises:
        ValueError: for both or neither of model and potential_fn, an argument out of its range, or an initial point
            where the potential is not finite.
        RuntimeError: at run time, if the potential is NaN 100 draws in a row.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = KineticLangevin(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    _max_step = 0.5

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size=0.1,
        friction=None,
        num_steps=10,
        integrator="BAOAB",
        adapt_step_size=True,
        target_accept_prob=0.9,
        adapt_mass_matrix=False,
        step_size_schedule=None,
        init_strategy=init_to_prior,
        transforms=None,
    ):
        super().__init__(
            model,
            potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            target_accept_prob=target_accept_prob,
            adapt_mass_matrix=adapt_mass_matrix,
            num_steps=num_steps,
            step_size_schedule=step_size_schedule,
            init_strategy=init_strategy,
            transforms=transforms,
        )
        if friction is not None and not friction >= 0:
            raise ValueError(f"Expected friction >= 0 or None; got {friction}.")
        self._friction = friction
        if integrator not in SPLITTINGS:
            raise ValueError(f"Expected integrator in {tuple(SPLITTINGS)}; got {integrator!r}.")
        self._integrator = integrator

    def _step(self, chains, potential_and_grad, step_size, adapt_state, last):
        friction = FRICTION / adapt_state.length_scale if self._friction is None else self._friction
        start = KineticState(chains.z, chains.v, chains.grad_point, chains.potential_energy, chains.z_grad)
        end = kinetic_step(start, potential_and_grad, step_size, friction, self._integrator, adapt_state.scale)
        finite = end.potential_energy < torch.inf
        error = energy_error(start, end, step_size, adapt_state.scale) if last else None
        info = StepInfo(error, diverges(error) if last else ~finite, 1)
        new = Chains(end.z, end.v, chains.slice, end.grad_point, end.potential_energy, end.z_grad)
        return choose(finite, new, chains._replace(v=-chains.v)), info
