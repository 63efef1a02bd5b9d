"""Networks whose hidden layers compute in bfloat16: what is lost, and what stays float32."""

import json

import numpy as np
import pytest
from marks import slow_unless

ENERGIES = {
    "MLP": ((784,), (), (128, 128), "silu"),
    "ConvEnergy": ((1, 16, 16), (16, 32), "silu", None, None, 1, "group"),
}
NETWORKS = ENERGIES | {
    "ConvGenerator": (20, (1, 16, 16), (32, 16), "silu", "tanh", 1, "pixel"),
    "ConvEncoder": ((1, 16, 16), 3, (16, 32), "silu"),
}


def pair(host, name):
    """The same weights, in full precision and with hidden layers in bfloat16."""
    network = getattr(host.module("nn"), name)
    full, low = (host.call(network, *NETWORKS[name], compute_dtype=dtype) for dtype in (None, "bfloat16"))
    return full, host.with_parameters(low, host.parameters(full))


def inputs(host, name, num=500):
    shape = (20,) if name == "ConvGenerator" else (1, 16, 16) if name != "MLP" else (784,)
    return host.array(np.random.default_rng(0).normal(size=(num, *shape)), "float32")


@pytest.mark.parametrize("name", slow_unless(list(NETWORKS), "MLP", "ConvEnergy"))
def test_outputs_are_float32_and_close(host, name):
    """bfloat16 has eight bits: hidden values are rounded to 0.4 %, at random, and the last layer is not."""
    with host.float32():
        full, low = pair(host, name)
        x, ndim = inputs(host, name), len(np.shape(inputs(host, name))) - 1
        a, b = (np.asarray(host.numpy(host.apply(network, x, ndim))) for network in (full, low))
        assert b.dtype == np.float32 and 1e-5 < np.abs(a - b).max() < 0.05 * a.std()
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.02 * a.std()
        assert all(weights.dtype == np.float32 for weights in host.parameters(low))


@pytest.mark.parametrize("name", slow_unless(list(ENERGIES), "MLP"))
def test_bias_of_log_weights_and_of_log_z(host, name):
    """Errors are of both signs: their mean, and what they do to log Z, are far below the error of one energy."""
    with host.float32():
        full, low = pair(host, name)
        x, ndim = inputs(host, name, 2000), len(NETWORKS[name][0])
        a, b = (np.asarray(host.numpy(host.apply(network, x, ndim)), float) for network in (full, low))
    scale = 3.0 / a.std()  # energies of the range that training makes
    error = scale * (b - a)
    assert 0.0 < np.abs(error).max() < 0.15
    assert abs(error.mean()) < 0.02
    log_z = [np.log(np.mean(np.exp(-scale * (e - a.mean())))) for e in (a, b)]
    assert abs(log_z[1] - log_z[0]) < 0.05


def test_training_in_bfloat16(host):
    """KALE of N(1, 1) against N(0, 1): the losses follow those of full precision, weights stay float32."""
    package, nn, curves = host.package, host.module("nn"), []
    data = np.random.default_rng(0).normal(size=(512, 4)) + 1.0
    with host.float32():
        for dtype in (None, "bfloat16"):
            energy = host.call(nn.MLP, (4,), (), (32,), "silu", compute_dtype=dtype, seed=1)
            kale = package.KALE(host.normal(4), package.KALEGuide(energy, penalty=None), None, host.adam(1e-2))
            result = host.train(kale, 60, data.astype(np.float32), batch_size=256, progress_bar=False)
            curves.append(np.asarray(host.numpy(result.losses.kale)))
    assert curves[1].dtype == np.float32 and curves[1][-10:].mean() > 0.5
    np.testing.assert_allclose(curves[1][-10:].mean(), curves[0][-10:].mean(), atol=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_that_build_it_again(host, name):
    """Files of full precision are as they were; others load with their precision."""
    full, low = pair(host, name)
    assert "compute_dtype" not in full.config and low.config["compute_dtype"] == "bfloat16"
    again = host.call(type(low), **json.loads(json.dumps(low.config)))
    assert again.config == low.config


def test_a_file_keeps_the_precision(host, tmp_path):
    nn, package = host.module("nn"), host.package
    with host.float32():
        energy = host.call(nn.MLP, (2,), (), (8,), compute_dtype="bfloat16")
        base = package.Pushforward(host.normal(2), host.call(nn.MLP, (2,), (2,), (8,)))
        package.save(package.GEBM(base, energy), tmp_path / "gebm.npz")
        assert package.load(tmp_path / "gebm.npz").energy.compute_dtype == "bfloat16"


def test_what_cannot_be(host):
    nn = host.module("nn")
    for build in (
        lambda **kwargs: host.call(nn.MLP, (2,), (), **kwargs),
        lambda **kwargs: host.call(nn.ConvEnergy, (1, 4, 4), (2,), **kwargs),
    ):
        with pytest.raises(ValueError, match="Expected compute_dtype in .*bfloat16.*; got 'float8'"):
            build(compute_dtype="float8")
        with pytest.raises(ValueError, match="Expected compute_dtype None for a bound on the Lipschitz constant"):
            build(compute_dtype="bfloat16", lipschitz=1.0)
