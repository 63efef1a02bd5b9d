"""Kinetic Langevin dynamics as a Pyro kernel."""

from collections import OrderedDict

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad

from pyro_gebm.infer.dynamics import SPLITTINGS, KineticState, kinetic_energy, kinetic_step, standard_normal_like
from pyro_gebm.infer.initialization import init_to_prior, max_plate_nesting

__all__ = ["KineticLangevin"]


class KineticLangevin(MCMCKernel):
    r"""Unadjusted kinetic (underdamped) Langevin dynamics, for `pyro.infer.MCMC`.

    .. math:: dz = v\, dt, \qquad dv = -\nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

    One draw is `num_steps` steps of the splitting `integrator`, one gradient each. There is no Metropolis test: the
    law of the draws has a bias of second order in the step size (for BAOAB none in the positions of a Gaussian).
    Stable for a step size below 2 over the largest frequency: for a standard normal latent prior keep it under
    `1 / sqrt(1 + beta L)`, with L the largest curvature of the energy in z. Source: arXiv:2003.05033 (the sampler),
    arXiv:1203.5428 (the splittings).

    A step that leads to a potential that is not finite is not taken; the velocity is then drawn afresh and the draw
    is counted as a divergence.

    Args:
        model: a Pyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a dict of unconstrained tensors (one chain) to a scalar; needs `initial_params`.
        step_size: h, in units of time (the latent's unit, as the mass is one).
        friction: gamma, in units of inverse time.
        num_steps: steps a draw.
        integrator: "BAOAB" or "OBABO".
        init_strategy: where chains start; a draw of every site's base prior by default.
        transforms: transforms of constrained sites, as for Pyro's HMC; found automatically where None.

    Raises:
        ValueError: for both or neither of model and potential_fn, a step size that is not positive, a negative
            friction, an unknown integrator, or an initial point where the potential is not finite.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = KineticLangevin(lambda: pyro.sample("z", gebm.latent), step_size=0.5)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size=0.1,
        friction=1.0,
        num_steps=1,
        integrator="BAOAB",
        init_strategy=init_to_prior,
        transforms=None,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError("Only one of `model` or `potential_fn` must be specified.")
        if not step_size > 0:
            raise ValueError(f"Expected step_size > 0; got {step_size}.")
        if not friction >= 0:
            raise ValueError(f"Expected friction >= 0; got {friction}.")
        if not num_steps >= 1:
            raise ValueError(f"Expected num_steps >= 1; got {num_steps}.")
        if integrator not in SPLITTINGS:
            raise ValueError(f"Expected integrator in {SPLITTINGS}; got {integrator!r}.")
        self.model = model
        self.potential_fn = potential_fn
        self.transforms = transforms
        self._step_size, self._friction = step_size, friction
        self._num_steps, self._integrator = num_steps, integrator
        self._init_strategy = init_strategy
        self._reset()

    def _reset(self):
        self._initial_params = None
        self._state = None
        self._i = 0
        self._statistics = {"lp": [], "energy": [], "diverging": []}

    @property
    def initial_params(self):
        """Unconstrained start of the chain."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params):
        self._initial_params = params

    def setup(self, warmup_steps, *args, **kwargs):
        self._warmup_steps = warmup_steps
        if self.model is not None:
            self._initial_params, self.potential_fn, self.transforms, _ = initialize_model(
                self.model,
                args,
                kwargs,
                transforms=self.transforms,
                max_plate_nesting=max_plate_nesting(self.model, args, kwargs),
                init_strategy=self._init_strategy,
                initial_params=self._initial_params,
            )
        if self._initial_params is None:
            raise ValueError("Expected `initial_params` with `potential_fn`; got None. Pass them to `MCMC`.")
        z = {name: value.detach() for name, value in self._initial_params.items()}
        potential_energy, z_grad = self._potential_and_grad(z)
        if not torch.isfinite(potential_energy):
            raise ValueError(
                "Expected a finite potential at the initial point; got "
                f"{potential_energy.item()}. Pass `initial_params`, or check the energy for NaN."
            )
        self._state = KineticState(z, standard_normal_like(z), potential_energy, z_grad)

    def _potential_and_grad(self, z):
        z_grad, potential_energy = potential_grad(self.potential_fn, z)
        return potential_energy, z_grad

    def sample(self, params):
        start = self._state
        end = start
        for _ in range(self._num_steps):
            end = kinetic_step(end, self._potential_and_grad, self._step_size, self._friction, self._integrator)
        bad = ~torch.isfinite(end.potential_energy)
        v = standard_normal_like(start.v)
        pick = {k: torch.where(bad, start.z[k], end.z[k]) for k in start.z}
        self._state = KineticState(
            z=pick,
            v={k: torch.where(bad, v[k], end.v[k]) for k in v},
            potential_energy=torch.where(bad, start.potential_energy, end.potential_energy),
            z_grad={k: torch.where(bad, start.z_grad[k], end.z_grad[k]) for k in v},
        )
        self._i += 1
        if self._i > self._warmup_steps:
            self._statistics["lp"].append(-self._state.potential_energy)
            self._statistics["energy"].append(self._state.potential_energy + kinetic_energy(self._state.v))
            self._statistics["diverging"].append(bad)
        return dict(self._state.z)

    def logging(self):
        return OrderedDict(
            [
                ("step size", f"{self._step_size:.2e}"),
                ("potential", f"{float(self._state.potential_energy):.2f}"),
            ]
        )

    def diagnostics(self):
        """Divergences as Pyro's kernels report them, and under "sample_stats" one value a draw of each statistic."""
        stats = {name: torch.stack(values).cpu() for name, values in self._statistics.items() if values}
        num = len(self._statistics["diverging"])
        if num:
            stats["step_size"] = torch.full((num,), float(self._step_size))
            stats["n_steps"] = torch.full((num,), self._num_steps)
        divergences = stats["diverging"].nonzero().flatten().tolist() if num else []
        return {"divergences": divergences, "sample_stats": stats}

    def cleanup(self):
        self._reset()
