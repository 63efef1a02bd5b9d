"""Run by test_mesh.py where JAX has eight virtual devices: chains and particles on a mesh of them and on one."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from numpyro_gebm import GEBM, Pushforward, infer, nn
from numpyro_gebm.infer import SMC, AnnealedMALA, sharded


def main():
    """Print the largest differences, the devices, and what was refused."""
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((8,), ("data",))
    keys = jax.random.split(jax.random.key(0), 3)
    base = Pushforward(dist.Normal(jnp.zeros(3), 1.0).to_event(1), nn.MLP((3,), (5,), (16,), rng_key=keys[0]))
    gebm = GEBM(base, nn.MLP((5,), (), (16,), rng_key=keys[1]))

    def model():
        return numpyro.sample("z", gebm.latent)

    def chains(kernel, how, num=32):
        sizes = {"num_warmup": 100, "num_samples": 30, "num_chains": num}
        return MCMC(kernel, **sizes, chain_method=how, progress_bar=False)

    found = {}
    for name in ("GHMC", "Ex2MCMC", "ReplicaExchange", "NUTS"):
        runs = []
        for how in ("vectorized", sharded(mesh)):
            target = gebm.latent if name == "ReplicaExchange" else model
            mcmc = chains((NUTS if name == "NUTS" else getattr(infer, name))(target), how)
            mcmc.run(keys[2])
            if name == "GHMC":
                mcmc.post_warmup_state = mcmc.last_state  # and on from there
                mcmc.run(mcmc.last_state.rng_key)
            runs.append(mcmc.get_samples(group_by_chain=True)["z"])
        found[name] = runs
    found["SMC"] = [SMC(2048, mesh=m).run(gebm.latent, rng_key=keys[2], progress_bar=False).z for m in (None, mesh)]
    samplers = (AnnealedMALA(mesh=m) for m in (None, mesh))
    found["sample"] = [GEBM(base, gebm.energy, sampler=s).sample(keys[2], (512,)) for s in samplers]

    kernel = infer.GHMC(potential_fn=lambda z: 0.5 * z @ jnp.eye(16) @ z)
    many = jax.random.split(keys[0], 64)
    placed = sharded(mesh).devices.placed_rows((many, jnp.ones((64, 16))))
    state = kernel.init(placed[0], 0, placed[1], (), {})
    text = jax.jit(lambda state: kernel.sample(state, (), {})).lower(state).compile().as_text()
    products = [tuple(map(int, shape.split(","))) for shape in re.findall(r"f64\[(\d+,16)\]\S* dot\(", text)]

    errors = {}
    for name, use in {
        "chains": lambda: chains(infer.GHMC(model), sharded(mesh), 12).run(keys[0]),
        "particles": lambda: SMC(1004, num_groups=4, mesh=mesh),
        "none": lambda: sharded(None),
        "kind": lambda: sharded(8),
        "caller": lambda: sharded(mesh)(lambda x: x),
    }.items():
        try:
            use()
        except (TypeError, ValueError) as error:
            errors[name] = str(error)
    report = {
        "difference": {name: float(np.abs(np.asarray(a) - np.asarray(b)).max()) for name, (a, b) in found.items()},
        "devices": {name: len(b.sharding.device_set) for name, (_, b) in found.items()},
        "largest product": max(products),
        "errors": errors,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
