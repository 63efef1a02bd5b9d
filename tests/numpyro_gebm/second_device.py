"""Run by test_mesh.py where JAX has two virtual devices: everything follows parameters that are on the second."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, infer, log_partition, nn, particle_flows
from numpyro_gebm.divergences import kernels, mmd2


def main():
    """Print, by name, the devices of what came out."""
    second = jax.devices()[1]
    prior = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    keys = jax.random.split(jax.random.key(0), 4)
    base = Pushforward(prior, nn.MLP((2,), (3,), (8,), rng_key=keys[0]))
    energy = nn.MLP((3,), (), (8,), rng_key=keys[1])
    gebm = jax.device_put(GEBM(base, energy), second)
    key, data = keys[2], np.random.default_rng(0).normal(size=(64, 3))  # not bound to a device

    found = {"decode": gebm.decode(gebm.latent_prior.sample(key, (4,))), "sample": gebm.sample(key, (4,))}
    found["log_prob"] = gebm.latent.log_prob(gebm.latent_prior.sample(key, (4,)))
    found["smc"] = infer.SMC(256).run(gebm.latent, rng_key=key, progress_bar=False).z
    log_partition(gebm, "importance", rng_key=key, num_samples=100, progress_bar=False)
    guide = KALEGuide(gebm.energy)
    training = KALE(gebm.base, guide, optax.adam(1e-3), optax.adam(1e-3))
    result = training.run(key, 5, data, batch_size=16, progress_bar=False)
    found["energy"], found["A"] = result.state.energy.layers[0].weight, result.state.log_partition
    found["base"] = result.state.base.layers[0].weight
    found["result"] = result.gebm.sample(key, (3,))
    for name in ("GHMC", "MALT", "MALA", "ULA", "KineticLangevin", "Ex2MCMC"):
        settings = {"step_size": 0.1} if name in ("ULA", "KineticLangevin") else {}
        kernel = getattr(infer, name)(lambda: numpyro.sample("z", gebm.latent), **settings)
        mcmc = MCMC(kernel, num_warmup=5, num_samples=5, num_chains=2, chain_method="vectorized", progress_bar=False)
        mcmc.run(key)
        found[name] = mcmc.get_samples()["z"]
    data = jax.device_put(data, second)
    mcmc = MCMC(infer.ReplicaExchange(gebm.latent), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(key)
    found["ReplicaExchange"] = mcmc.get_samples()["z"]
    found["ShortRun"] = infer.ShortRun(num_steps=3).run(gebm.latent, 4, rng_key=key, progress_bar=False).z
    found["mmd"] = mmd2(data, data + 1.0)
    flow = particle_flows.mmd_flow(data, data + 1.0, kernels.Gaussian(1.0), num_steps=2, step_size=0.1, rng_key=key)
    found["mmd_flow"] = flow.particles
    print(json.dumps({name: sorted(device.id for device in value.devices()) for name, value in found.items()}))


if __name__ == "__main__":
    main()
