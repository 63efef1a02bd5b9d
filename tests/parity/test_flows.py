"""A flow saved by one package is the same flow in the other, as a base and inside an energy."""

import numpy as np
import pytest

numpyro_gebm = pytest.importorskip("numpyro_gebm")
pyro_gebm = pytest.importorskip("pyro_gebm")
jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
numpyro_flows = pytest.importorskip("numpyro_gebm.flows")
pyro_flows = pytest.importorskip("pyro_gebm.flows")

ARCHITECTURE = {"dim": 3, "num_couplings": 2, "hidden": (5, 4)}
X = np.random.default_rng(0).normal(size=(7, 3))


def numpyro_gebm_of(seed):
    """A GEBM whose base and energy are flows, all parameters random."""

    def random_flow(seed):
        flow = numpyro_flows.real_nvp(**ARCHITECTURE, rng_key=jax.random.key(seed))
        leaves, treedef = jax.tree.flatten(flow.transforms)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        leaves = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
        return numpyro_gebm.base.with_trained_part(flow, jax.tree.unflatten(treedef, leaves))

    base = random_flow(seed)
    energy = numpyro_flows.FlowRatioEnergy(base, random_flow(seed + 10))
    return numpyro_gebm.GEBM(base, energy, log_partition=energy.log_partition)


def pyro_gebm_of(seed):
    def random_flow(seed):
        flow = pyro_flows.real_nvp(**ARCHITECTURE)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in pyro_gebm.base.trained_part(flow).parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return flow

    base = random_flow(seed)
    energy = pyro_flows.FlowRatioEnergy(base, random_flow(seed + 10))
    return pyro_gebm.GEBM(base, energy, log_partition=energy.log_partition.item())


@jax.jit
def numpyro_values(gebm, x):
    return {
        "flow": gebm.base.log_prob(x),
        "energy": jax.vmap(gebm.energy)(x),
        "A": gebm.energy.log_partition,
        "GEBM": gebm.log_prob(x),
        "decode": gebm.decode(x),
        "latent": gebm.latent.log_prob(x),
    }


@pytest.mark.parametrize("source", ["numpyro", "pyro"])
def test_a_saved_flow_is_the_same_in_the_other_host(source, tmp_path):
    path = tmp_path / "gebm.npz"
    if source == "numpyro":
        ours, blank = numpyro_gebm_of(0), pyro_gebm_of(5)
        numpyro_gebm.save(ours, path)
        theirs = pyro_gebm.load(path, base=blank.base, energy=blank.energy)
    else:
        theirs, blank = pyro_gebm_of(0), numpyro_gebm_of(5)
        pyro_gebm.save(theirs, path)
        ours = numpyro_gebm.load(path, base=blank.base, energy=blank.energy)
    x = torch.tensor(X)
    expected = {
        "flow": theirs.base.log_prob(x),
        "energy": theirs.energy(x),
        "A": theirs.energy.log_partition,
        "GEBM": theirs.log_prob(x),
        "decode": theirs.decode(x),
        "latent": theirs.latent.log_prob(x),
    }
    for name, value in numpyro_values(ours, X).items():
        np.testing.assert_allclose(value, expected[name].detach(), rtol=1e-10, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(theirs.log_prob(x).detach(), theirs.energy.q.log_prob(x).detach(), atol=1e-10)
