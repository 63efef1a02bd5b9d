"""Code of a user of NumPyro, read by the type checker and never run: no error may be found in it."""

from typing import assert_type

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS

from gebm import errors
from numpyro_gebm import (
    GEBM,
    KALE,
    Diagnosis,
    EnergyTiltedPrior,
    KALEGuide,
    LatentReparam,
    LogPartition,
    Program,
    Pushforward,
    decode,
    decode_to_zarr,
    diagnose,
    divergences,
    flows,
    gradient_penalty,
    infer,
    load,
    log_partition,
    log_partition_curve,
    metrics,
    nn,
    particle_flows,
    read_draws,
    save,
    to_arviz,
)
from numpyro_gebm.training import kale_between
from numpyro_gebm.training.objectives import Energies

KEY = jax.random.key(0)
PRIOR = dist.Normal(0.0, 1.0).expand([2]).to_event(1)


class Quadratic(eqx.Module):
    scale: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return 0.5 * self.scale * jnp.sum(x**2)


def models() -> GEBM:
    base = Pushforward(PRIOR, nn.MLP((2,), (3,), hidden=(4,), rng_key=KEY))
    gebm = GEBM(base, Quadratic(jnp.array(1.0)), inverse_temperature=jnp.array(2.0))
    GEBM(base, lambda x: 0.5 * (x**2).sum(), inverse_temperature=2, log_partition=0.0, validate_args=False)
    GEBM(base, nn.ConvEnergy((1, 8, 8), rng_key=KEY), inverse_temperature=np.ones(3))
    GEBM(flows.real_nvp(2, rng_key=KEY), nn.Applied(lambda p, x: p["a"] * x.sum(), {"a": jnp.ones(())}))
    GEBM(base, gebm.energy, log_partition=lambda beta: -beta, sampler=infer.AnnealedMALA(num_steps=100))
    assert_type(gebm.latent, EnergyTiltedPrior)
    assert_type(gebm.sample(KEY, (5,)), jax.Array)
    assert_type(gebm.latent.sample(KEY, (5,)), jax.Array)
    assert_type(gebm.decode(gebm.latent.sample(KEY)), jax.Array)
    assert_type(gebm.latent.log_prob(jnp.zeros(2)), jax.Array)
    assert_type(gebm.log_weight(jnp.zeros(3)) + gebm.log_prob(np.zeros(3)), jax.Array)
    return gebm.temper(0.5)


def sampler(latent: EnergyTiltedPrior, num_samples: int, *, rng_key: jax.Array) -> jax.Array:
    return jnp.zeros((num_samples, *latent.event_shape))


def log_partitions(gebm: GEBM) -> None:
    estimate = log_partition(gebm, method="smc", rng_key=KEY)
    assert_type(estimate, LogPartition)
    assert_type(estimate.value + estimate.std_error, float)
    GEBM(gebm.base, gebm.energy, log_partition=estimate, sampler=sampler)
    curve = log_partition_curve(gebm, rng_key=KEY)
    GEBM(gebm.base, gebm.energy, log_partition=curve)
    assert_type(curve(0.5), jax.Array)


def programs(data: jax.Array) -> jax.Array:
    base = Program(lambda num: numpyro.sample("x", dist.Normal(num, 1.0)), "x", (3.0,))
    assert_type(base.sample(KEY, (5,)), jax.Array)
    assert_type(base.constrain(jnp.zeros(1))["x"], jax.Array)
    result = KALE(base, KALEGuide(lambda x: x), None, optax.adam(1e-3)).run(KEY, 5, data)
    result.program()
    return GEBM(base, lambda x: x**2).sample(KEY)


class Hinge:
    def energy_loss(self, energies: Energies) -> jax.Array:
        return jnp.mean(jnp.maximum(0.0, 1.0 + energies.data)) + jnp.mean(jnp.maximum(0.0, 1.0 - energies.base))


def training(data: jax.Array) -> GEBM:
    guide = KALEGuide(nn.MLP((3,), (), rng_key=KEY), penalty=gradient_penalty(1.0))
    kale = KALE(Pushforward(PRIOR, nn.MLP((2,), (3,), rng_key=KEY)), guide, optax.adam(1e-4), optax.adam(1e-4))
    try:
        result = kale.run(KEY, 1000, data, batch_size=128)
    except errors.TrainingDiverged as error:
        raise RuntimeError(str(error.state)) from error
    KALE(PRIOR, guide, None, optax.adam(1e-4), objective="contrastive_divergence", energy_steps=lambda step: 5)
    KALE(PRIOR, guide, None, optax.adam(1e-4), objective=Hinge())
    kale.run(KEY, 1000, data, validation=data, validate_every=100, keep_best=False, checkpoint_dir="checkpoints")
    assert_type(result.gebm, GEBM)
    state, _ = kale.update(kale.init(KEY, data), data)
    float(kale.evaluate(state, data))
    std_error: float = kale.evaluate(state, data, tolerance=0.01, max_draws=1000).std_error
    refined = KALE(PRIOR, guide, None, optax.adam(1e-3)).refine(
        KEY, 10, data, num_chains=64, patience=3, validation=data
    )
    draws = refined.gebm.decode(refined.latents)
    assert_type(std_error + kale_between(data, draws, guide, optax.adam(1e-3), rng_key=KEY).value, float)
    return result.gebm


def model(gebm: GEBM) -> None:
    x = numpyro.sample("x", gebm)
    numpyro.sample("y", dist.Normal(jnp.sum(jnp.asarray(x)), 0.1), obs=jnp.zeros(()))


def sampling(gebm: GEBM) -> Diagnosis:
    for kernel in (
        NUTS(reparam(model, config={"x": LatentReparam()}), init_strategy=infer.init_to_prior),
        infer.ULA(model, step_size=0.1),
        infer.MALA(potential_fn=lambda z: 0.5 * (z**2).sum()),
        infer.MALT(model, step_size=0.1),
        infer.GHMC(model),
        infer.KineticLangevin(model),
    ):
        mcmc = MCMC(kernel, num_warmup=100, num_samples=100, num_chains=4, chain_method="vectorized")
        mcmc.run(KEY, gebm)
    infer.stream_draws(mcmc, "draws.nc", (gebm,), rng_key=KEY)
    mesh = jax.make_mesh((1,), ("data",))
    how = infer.sharded(mesh)
    MCMC(
        infer.GHMC(model),
        num_warmup=100,
        num_samples=100,
        chain_method=how,  # pyright: ignore[reportArgumentType]  # NumPyro's annotation knows names only
    )
    GEBM(gebm.base, gebm.energy, sampler=infer.AnnealedMALA(mesh=mesh)).sample(KEY, (10,))
    data = to_arviz(mcmc, gebm)
    report = diagnose(data, gebm=gebm)
    print(report)
    infer.SMC(1000).run(gebm.latent, rng_key=KEY)
    return report


def files(gebm: GEBM) -> GEBM:
    save(gebm, "model.npz")
    for x in decode(gebm, read_draws("draws.nc"), batch_size=100):
        assert_type(x, jax.Array)
    decode_to_zarr(gebm, read_draws("draws.zarr"), "x.zarr", batch_size=100)
    return load("model.npz")


def distances(x: jax.Array, y: jax.Array) -> None:
    own = divergences.mmd2(x, y, kernel=lambda x, y: x @ y.T)
    assert_type(own + divergences.mmd2(x, np.asarray(y), 1.0, estimator="biased"), jax.Array)
    assert_type(divergences.mmd_witness(x, y, kernel=divergences.kernels.Laplace(2.0))(x), jax.Array)
    assert_type(divergences.mmd_test(x, y, rng_key=KEY).p_value, jax.Array)
    assert_type(divergences.kale_rkhs(x, y).value, jax.Array)
    assert_type(divergences.f_divergence("kl").bound(x[:, 0], y[:, 0]), jax.Array)
    assert_type(metrics.frechet_distance(x, y), jax.Array)
    flow = particle_flows.mmd_flow(
        x, y, num_steps=10, step_size=0.1, noise=lambda step: 1.0 / (1.0 + step), rng_key=KEY
    )
    assert_type(flow.particles, jax.Array)
