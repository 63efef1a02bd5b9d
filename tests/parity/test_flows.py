"""A flow saved by one package is the same flow in the other, as a base and inside an energy."""

import numpy as np
import pytest

X = np.random.default_rng(0).normal(size=(7, 3))


def gebm_of(host, seed):
    """A GEBM whose base and energy are flows, all parameters random."""
    base = host.random_flow(seed=seed)
    energy = host.flows.FlowRatioEnergy(base, host.random_flow(seed=seed + 10))
    return host.GEBM(base, energy, log_partition=float(host.numpy(energy.log_partition)))


def values_of(host, gebm):
    def values(x):
        return {
            "flow": gebm.base.log_prob(x),
            "energy": host.apply(gebm.energy, x),
            "A": gebm.energy.log_partition,
            "GEBM": gebm.log_prob(x),
            "decode": gebm.decode(x),
            "latent": gebm.latent.log_prob(x),
            "q": gebm.energy.q.log_prob(x),
        }

    return {name: host.numpy(value) for name, value in host.jit(values)(host.array(X)).items()}


@pytest.mark.parametrize("source", [0, 1], ids=["numpyro", "pyro"])
def test_a_saved_flow_is_the_same_in_the_other_host(both, source, tmp_path):
    here, there = both[source], both[1 - source]
    ours, blank = gebm_of(here, 0), gebm_of(there, 5)
    here.save(ours, tmp_path / "gebm.npz")
    theirs = there.load(tmp_path / "gebm.npz", base=blank.base, energy=blank.energy)
    expected = values_of(there, theirs)
    for name, value in values_of(here, ours).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(expected["GEBM"], expected["q"], atol=1e-10)
