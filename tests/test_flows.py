"""Real NVP: density, inverse, training, and the energy with a known log-partition."""

import numpy as np
import pytest


@pytest.mark.parametrize(
    "dim, num_couplings",
    [(5, 2), *(pytest.param(dim, 3, marks=pytest.mark.slow_in("numpyro")) for dim in (2, 3, 6))],
)
def test_density_is_the_change_of_variables(host, dim, num_couplings):
    flow, z = host.random_flow(dim, num_couplings), np.random.normal(size=(4, dim))

    def push(z):
        for transform in flow.transforms:
            z = transform(z)
        return z

    def both_ways(z):
        pulled = x = push(z)
        for transform in reversed(flow.transforms):
            pulled = transform.inv(pulled)
        first = flow.transforms[0]
        log_dets = first.log_abs_det_jacobian(z, first(z)), -host.apply(first.log_scale, z[:1, : dim // 2]).sum()
        return x, push(z[0]), host.func.vmap(host.func.jacrev(push))(z), flow.log_prob(x), pulled, *log_dets

    values = host.jit(both_ways)(host.array(z))  # compiled in one go
    x, one_row, jacobians, log_prob, pulled, log_dets, log_det = map(host.numpy, values)
    assert np.abs(x - z).max() > 0.1
    np.testing.assert_allclose(one_row, x[0], rtol=0, atol=1e-12)
    expected = host.numpy(host.normal(dim).log_prob(host.array(z))) - np.linalg.slogdet(jacobians)[1]
    np.testing.assert_allclose(log_prob, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(pulled, z, rtol=0, atol=1e-10)
    assert log_dets[0] == pytest.approx(float(log_det), rel=1e-12) and log_dets.shape == (4,)


def test_the_density_integrates_to_one(host):
    flow = host.random_flow(2, 3, seed=3)
    side = np.linspace(-15.0, 15.0, 600)
    grid = host.array(np.stack(np.meshgrid(side, side), -1))
    density = np.exp(host.numpy(host.jit(flow.log_prob)(grid)))
    np.testing.assert_allclose(density.sum() * (side[1] - side[0]) ** 2, 1.0, atol=1e-3)


def test_every_coordinate_changes_in_turn(host):
    x = np.arange(5.0)
    for swap, kept in ((False, slice(2)), (True, slice(2, None))):
        coupling = host.call(host.flows.AffineCoupling, 5, (4,), swap=swap)
        coupling = host.with_parameters(coupling, [np.ones(p.shape) for p in host.parameters(coupling)])
        same = host.numpy(coupling(host.array(x))) == x
        np.testing.assert_array_equal(same, np.isin(np.arange(5), np.arange(5)[kept]))


@pytest.mark.slow_in("numpyro")
def test_maximum_likelihood_fits_a_curved_law(host):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0] ** 2
    flow = host.call(host.flows.real_nvp, 2, 2, (16, 16))
    guide, optim = host.KALEGuide(lambda x: 0.0 * x.sum(-1)), host.adam(5e-3, decay_steps=800)
    kale = host.KALE(flow, guide, optim, None, objective="maximum_likelihood")
    result = host.train(kale, 800, x[:2000], batch_size=200)
    entropy = 2 * 0.5 * np.log(2 * np.pi * np.e) + np.log(0.5)
    held_out = -float(result.gebm.base.log_prob(host.array(x[2000:])).mean())
    assert abs(held_out - entropy) < 0.1  # two standard errors of the mean and the fit; N(0, I) gives 3.7


def test_flow_ratio_energy_is_the_flow(host):
    base, flow = host.random_flow(seed=0), host.random_flow(seed=5)
    energy = host.flows.FlowRatioEnergy(base, flow)
    gebm = host.GEBM(base, energy, log_partition=float(host.numpy(energy.log_partition)))
    x = host.array(np.random.normal(size=(6, 3)))
    ours, expected = map(host.numpy, host.jit(lambda x: (gebm.log_prob(x), flow.log_prob(x)))(x))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)
    squares = sum((parameter**2).sum() for parameter in host.parameters(flow))
    assert float(host.numpy(energy.log_partition)) == pytest.approx(np.log(squares), rel=1e-7)


@pytest.mark.slow_in("numpyro")
def test_flow_ratio_energy_trains_its_flow_alone_and_learns_its_constant(host):
    base = host.random_flow(2, hidden=(6,), scale=0.1)
    before = host.parameters(base)
    data = np.random.normal([0.5, 0.0], [0.7, 1.3], (1000, 2))
    guide = host.KALEGuide(host.flows.FlowRatioEnergy(base), penalty=None)
    kale = host.KALE(base, guide, None, host.adam(2e-3))
    gebm = host.train(kale, 200, data, batch_size=200).gebm
    trained, x = gebm.energy, host.array(data)
    for flow in (base, gebm.base):
        for old, new in zip(before, host.parameters(flow), strict=True):
            np.testing.assert_array_equal(old, new)
    assert any((old != new).any() for old, new in zip(before, host.parameters(trained.q), strict=True))
    assert abs(float(gebm.log_partition) - float(host.numpy(trained.log_partition))) < 0.01
    assert host.numpy(trained.q.log_prob(x)).mean() > host.numpy(base.log_prob(x)).mean() + 0.05


def real_nvp(host, *args):
    return host.call(host.flows.real_nvp, *args)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda host: real_nvp(host, 1), r"Expected dim >= 2.*got 1"),
        (lambda host: real_nvp(host, 3, 0), r"Expected num_couplings >= 1; got 0"),
        (lambda host: real_nvp(host, 3).transforms[0](host.array(np.ones(4))), r"length 3; got shape \(4,\)"),
        (
            lambda host: host.flows.FlowRatioEnergy(host.dist.Normal(0.0, 1.0)),
            r"Expected base to be .*; got Normal. Use `real_nvp`",
        ),
        (
            lambda host: host.flows.FlowRatioEnergy(real_nvp(host, 3), host.normal(3)),
            r"Expected flow to be .*; got Independent",
        ),
        (
            lambda host: host.flows.FlowRatioEnergy(real_nvp(host, 3), real_nvp(host, 2)),
            r"events of shape \(3,\); got \(2,\)",
        ),
        (
            lambda host: host.flows.FlowRatioEnergy(host.Pushforward(host.normal(2), lambda z: z)),
            "Expected base to be .*; got Pushforward",
        ),
    ],
)
def test_errors(host, build, message):
    with pytest.raises(ValueError, match=message):
        build(host)
