"""Metropolis-adjusted Langevin algorithm as a Pyro kernel."""

import torch

from pyro_gebm.dynamics.metropolis import choose, diverges
from pyro_gebm.dynamics.steps import kinetic_energy, overdamped_move, reverse_noise
from pyro_gebm.infer.initialization import init_to_prior
from pyro_gebm.infer.kernel import LangevinKernel, StepInfo

__all__ = ["MALA", "overdamped_step"]


class MALA(LangevinKernel):
    r"""Metropolis-adjusted (overdamped) Langevin algorithm, for `pyro.infer.MCMC` and `infer.VectorizedMCMC`.

    Proposes

    .. math:: z' = z - \tfrac{h^2}{2} \sigma^2 \nabla U(z) + h\, \sigma\, \xi, \qquad \xi \sim N(0, I)

    and accepts it with probability $\min(1, \exp(U(z) - U(z') + \tfrac12 |\xi|^2 - \tfrac12 |\xi'|^2))$, where
    $\xi' = \xi - \tfrac{h}{2} \sigma (\nabla U(z) + \nabla U(z'))$ is the noise of the way back. One gradient a step.
    The exact twin of `ULA`. Source: doi:10.1111/1467-9868.00123.

    Args:
        model: a Pyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a dict of unconstrained tensors (one chain) to a scalar; needs
            `initial_params`.
        step_size: initial h, in units of the latent over $\sigma$.
        adapt_step_size: whether the warm-up adapts it.
        target_accept_prob: mean acceptance probability it is adapted to.
        adapt_mass_matrix: whether the warm-up adapts a diagonal mass, $1 / \sigma^2$; else $\sigma = 1$.
        num_steps: steps a draw.
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
        >>> kernel = MALA(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    _has_velocity = False

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size=0.1,
        adapt_step_size=True,
        target_accept_prob=0.574,
        adapt_mass_matrix=False,
        num_steps=1,
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
            init_strategy=init_strategy,
            transforms=transforms,
        )

    def _step(self, chains, potential_and_grad, step_size, adapt_state, last):
        proposal, info = overdamped_step(chains, potential_and_grad, step_size, adapt_state.scale)
        accept = torch.rand_like(info.energy_error).log() < -info.energy_error
        return choose(accept, proposal, chains), info


def overdamped_step(chains, potential_and_grad, step_size, scale):
    """One overdamped Langevin step and its Metropolis test, not yet carried out.

    Args:
        chains: `Chains`.
        potential_and_grad: callable from positions to potentials and their gradients.
        step_size: h, a number or a scalar.
        scale: square root of the diagonal of the inverse mass matrix.

    Returns:
        `(Chains, StepInfo)`; the energy error is minus the log acceptance ratio.
    """
    noise = torch.randn_like(chains.z)
    z = overdamped_move(chains.z, chains.z_grad, noise, step_size, scale)
    potential_energy, z_grad = potential_and_grad(z)
    back = reverse_noise(chains.z_grad, z_grad, noise, step_size, scale)
    error = potential_energy - chains.potential_energy + kinetic_energy(back) - kinetic_energy(noise)
    proposal = chains._replace(z=z, grad_point=z, potential_energy=potential_energy, z_grad=z_grad)
    return proposal, StepInfo(error, diverges(error), 1)
