"""Run by test_mesh.py where JAX has eight virtual devices: training on a mesh of them and on one."""

import json
import sys

import jax
import numpy as np
import numpyro.distributions as dist
import optax

from numpyro_gebm import KALE, KALEGuide, Pushforward, nn


def train(num_steps, **kwargs):
    """A short training; its curves and its parameters."""
    keys = jax.random.split(jax.random.key(0), 3)
    prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    base = Pushforward(prior, nn.MLP((2,), (3,), (16,), rng_key=keys[0]))
    guide = KALEGuide(nn.MLP((3,), (), (16,), rng_key=keys[1]))
    kale = KALE(base, guide, optax.adam(1e-3), optax.adam(1e-3), energy_steps=2, noise_factor=2, **kwargs)
    data = np.random.default_rng(0).normal(size=(256, 3)) + 1.0
    result = kale.run(keys[2], num_steps, data, batch_size=64, progress_bar=False, validation=data[:40])
    arrays = jax.tree.leaves([list(result.losses), result.state.base, result.state.energy, result.gebm.log_partition])
    return kale, result, np.concatenate([np.ravel(a) for a in arrays])


def main():
    """Print the largest difference, and where the arrays are."""
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((8,), ("data",))
    one, many = train(100)[2], train(100, mesh=mesh)
    kale, result, values = many
    batch = jax.ShapeDtypeStruct((64, 3), np.float64)
    text = jax.jit(kale._one_update).lower(result.state, batch).compile().as_text()
    errors = {}
    for name, kwargs, size in (("axis", {"axis": "rows"}, 64), ("size", {}, 60)):
        try:
            keys = jax.random.key(0)
            base = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
            training = KALE(
                base, KALEGuide(nn.MLP((3,), (), (4,), rng_key=keys)), None, optax.sgd(0.1), mesh=mesh, **kwargs
            )
            training.run(keys, 1, np.zeros((64, 3)), batch_size=size, progress_bar=False)
        except ValueError as error:
            errors[name] = str(error)
    print(
        json.dumps(
            {
                "difference": float(np.abs(one - values).max()),
                "size": float(np.abs(one).max()),
                "devices": len(result.state.energy.layers[0].weight.sharding.device_set),
                "reduces": "all-reduce" in text,
                "parts": "f64[8,3]" in text,  # each of eight devices has eight of 64 rows
                "errors": errors,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
