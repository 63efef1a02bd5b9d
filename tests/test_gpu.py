"""What an accelerator could change, on the CPU and, where there is one, on a GPU: `make test-gpu`."""

import contextlib

import numpy as np
import pytest
from marks import slow_unless

pytestmark = pytest.mark.filterwarnings("ignore:.*synchronization debug mode is a prototype:UserWarning")

KERNELS = {
    "ULA": {"step_size": 0.2},
    "KineticLangevin": {"step_size": 0.3},
    "MALA": {},
    "GHMC": {},
    "MALT": {},
    "Ex2MCMC": {"num_candidates": 8},
}


def gpu_of(name):
    """The GPU of a host, or None."""
    if name == "pyro":
        import torch

        return torch.device("cuda", 0) if torch.cuda.is_available() else None
    import jax

    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        return None


class OnDevice:
    """A host that makes everything on a device."""

    def __init__(self, host, device):
        self.host, self.device, self.pyro = host, device, host.name == "pyro"

    @contextlib.contextmanager
    def __call__(self):
        """A context in which new arrays are on the device."""
        if self.pyro:
            import torch

            default = torch.get_default_device()
            torch.set_default_device(self.device)
            try:
                yield
            finally:
                torch.set_default_device(default)
        else:
            with self.host.jax.default_device(self.device):
                yield

    def has(self, value):
        """Whether an array is there."""
        if self.pyro:
            return value.device.type == self.device.type
        return value.devices() == {self.device}

    def model(self):
        """A GEBM of small networks, made on the CPU and moved: the same on every device."""
        host, nn = self.host, self.host.module("nn")
        generator = host.call(nn.MLP, (2,), (3,), (8,), seed=1)
        energy = host.call(nn.MLP, (3,), (), (8,), "silu", seed=2)
        with self():
            base = host.package.Pushforward(host.normal(2), self.moved(generator))
            return host.package.GEBM(base, self.moved(energy))

    def moved(self, network):
        """A network on the device."""
        return network.to(self.device) if self.pyro else self.host.jax.device_put(network, self.device)

    @contextlib.contextmanager
    def no_transfers(self):
        """A context in which nothing may be read off the device, or brought there."""
        if not self.pyro:
            with self.host.jax.transfer_guard("disallow"):
                yield
        elif self.device.type == "cpu":
            yield
        else:
            import torch

            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def there(host, request):
    if request.param == "cpu":
        device = host.torch.device("cpu") if host.name == "pyro" else host.jax.devices("cpu")[0]
    elif (device := gpu_of(host.name)) is None:
        pytest.skip(f"{host.name} finds no GPU")
    return OnDevice(host, device)


def test_densities_are_those_of_the_cpu(there):
    host = there.host
    z = np.random.default_rng(0).normal(size=(100, 2))
    cpu = OnDevice(host, host.torch.device("cpu") if there.pyro else host.jax.devices("cpu")[0])
    values = []
    for place in (cpu, there):
        gebm = place.model()
        with place():
            array = host.array(z)
            array = array.to(place.device) if place.pyro else host.jax.device_put(array, place.device)
            value = gebm.latent.log_prob(array)
        assert place.has(value)
        values.append(np.asarray(host.numpy(value.cpu() if place.pyro else value)))
    np.testing.assert_allclose(*values, rtol=1e-9)


def chains(there, kernel, num_warmup, num_samples, num_chains):
    """Draws of a kernel on a model."""
    host = there.host
    if there.pyro:
        mcmc = host.infer.VectorizedMCMC(kernel, num_samples, num_warmup, num_chains, disable_progbar=True)
        mcmc.run()
        return kernel.state.chains.kinetic.z, mcmc.get_samples()["z"].numpy()
    from numpyro.infer import MCMC

    sizes = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    mcmc = MCMC(kernel, **sizes, chain_method="vectorized", progress_bar=False)
    mcmc.run(host.jax.random.key(0))
    return mcmc.last_state.z["z"], np.asarray(mcmc.get_samples()["z"])


@pytest.mark.parametrize("name", slow_unless(list(KERNELS), "GHMC"))
def test_kernels_stay_on_the_device(there, name):
    """The law is N(0, 1/4): 64 chains of 50 draws, at 800 independent ones at least."""
    host = there.host
    with there():
        gebm = host.package.GEBM(host.normal(2), lambda x: 1.5 * (x**2).sum(-1))
        kernel = getattr(host.infer, name)(lambda: host.ppl.sample("z", gebm.latent), **KERNELS[name])
        last, draws = chains(there, kernel, 100, 50, 64)
    assert there.has(last)
    exact = name not in ("ULA", "KineticLangevin")
    assert abs(draws.var() - 0.25) < 5 * 0.25 * (2 / 1600) ** 0.5 + (0 if exact else 0.05)


def test_nothing_leaves_the_device_between_draws(there):
    host = there.host
    with there():
        gebm = there.model()
        kernel = host.infer.GHMC(lambda: host.ppl.sample("z", gebm.latent))
        if there.pyro:
            kernel.setup_chains(0, 8, None)
            kernel.advance()
            with there.no_transfers():
                for _ in range(5):
                    kernel.advance()
            return
        jax = host.jax
        state = kernel.init(jax.random.split(jax.random.key(0), 8), 0, None, (), {})
        steps = jax.jit(lambda state: jax.lax.fori_loop(0, 5, lambda i, s: kernel.sample(s, (), {}), state))
        state = steps(state)
        with there.no_transfers():
            state = steps(state)
    assert np.isfinite(host.numpy(state.potential_energy)).all()


def test_training_stays_on_the_device(there):
    host, nn = there.host, there.host.module("nn")
    data = np.random.default_rng(0).normal(size=(512, 3)) + 1.0
    with there():
        generator = there.moved(host.call(nn.MLP, (2,), (3,), (16,), seed=1))
        energy = there.moved(host.call(nn.MLP, (3,), (), (16,), seed=2))
        base = host.package.Pushforward(host.normal(2), generator)
        kale = host.package.KALE(base, host.package.KALEGuide(energy), host.adam(1e-3), host.adam(1e-3))
        result = host.train(kale, 20, data, batch_size=64)
    weights = result.gebm.energy.layers[0].weight
    assert there.has(weights) and there.has(result.gebm.base.generator.layers[0].weight)
    assert np.isfinite(np.asarray(host.numpy(result.losses.kale.cpu() if there.pyro else result.losses.kale))).all()


def test_the_ladder_stays_on_the_device(there):
    host = there.host
    with there():
        gebm = host.package.GEBM(host.normal(2), lambda x: 1.5 * (x**2).sum(-1))
        result = host.call(host.infer.SMC(1024).run, gebm.latent, progress_bar=False)
        draws = host.sample(gebm, (64,))
    assert there.has(result.z) and there.has(draws)
    estimate = result.log_partition
    assert abs(float(estimate.value) + np.log(4.0)) < 5 * float(estimate.std_error)


@pytest.mark.gpu
def test_lower_precisions_on_a_gpu(host):
    """TF32 products and bfloat16 layers: energies as far from float32 as their bits say, and no bias."""
    if gpu_of(host.name) is None:
        pytest.skip(f"{host.name} finds no GPU")
    there, nn = OnDevice(host, gpu_of(host.name)), host.module("nn")
    x = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    values = {}
    with host.float32():
        for dtype in (None, "bfloat16"):
            energy = there.moved(host.call(nn.MLP, (64,), (), (256, 256), "silu", compute_dtype=dtype))
            with there():
                array = host.array(x).to(there.device) if there.pyro else host.array(x)
                value = host.apply(energy, array)
            values[dtype] = np.asarray(host.numpy(value.cpu() if there.pyro else value), float)
    error = (values["bfloat16"] - values[None]) / values[None].std()
    assert 1e-6 < np.sqrt(np.mean(error**2)) < 0.03 and abs(error.mean()) < 0.01
