"""Calls of every public constructor and function with arguments that are wrong: what comes of them.

    python tests/fuzz.py numpyro 5000

A call passes if it returns, or raises an error that names an argument that was changed. Anything else is counted: an
error from the inside, a call that takes longer than 20 seconds, a crash.
"""

import collections
import contextlib
import math
import pathlib
import random
import re
import signal
import sys
import tempfile
import warnings

import numpy as np

__all__ = ["fuzz", "targets"]

#: Values that are wrong for most arguments, made afresh for every call.
ODD = [
    lambda host: -1,
    lambda host: 0,
    lambda host: -0.5,
    lambda host: 1.5,
    lambda host: 10**20,
    lambda host: math.nan,
    lambda host: math.inf,
    lambda host: -math.inf,
    lambda host: True,
    lambda host: None,
    lambda host: 1j,
    lambda host: "text",
    lambda host: b"bytes",
    lambda host: [],
    lambda host: {},
    lambda host: ("a", 1),
    lambda host: object(),
    lambda host: int,
    lambda host: lambda: None,
    lambda host: host.array(np.array([[math.nan, 1.0]])),
    lambda host: host.array(np.zeros((0, 2))),
    lambda host: np.array(["a"]),
    lambda host: gebm(host),
    lambda host: gebm(host).latent,
]


class Hang(Exception):
    """A call that takes too long."""


def half_square(x):
    """An energy."""
    return 0.5 * (x**2).sum(-1)


def gebm(host, **kwargs):
    """A small GEBM."""
    return host.GEBM(host.normal(2), half_square, **kwargs)


def program(host):
    """A small program as a base."""
    return host.Program(lambda: host.ppl.sample("x", host.normal(2)), "x")


def targets(host, folder):
    """Maps a name to a callable and to arguments with which it works."""
    key = {"rng_key": host.key(0)[0]} if host.name == "numpyro" else {}
    infer, nn, divergences, flows = host.infer, host.nn, host.divergences, host.package.particle_flows
    points = np.random.default_rng(0).normal(size=(2, 8, 2))
    model = gebm(host)
    x, y = points
    kernels = divergences.kernels
    energy = host.call(nn.MLP, (2,), (), (3,))
    optimiser = host.sgd(1e-3)
    quiet = {"progress_bar": False}
    run = {"num_steps": 2, "data": x, "batch_size": 4, "progress_bar": False}
    if host.name == "numpyro":
        run["rng_key"] = host.key(0)[0]
    known = {
        "GEBM": (
            host.GEBM,
            {"base": host.normal(2), "energy": half_square, "inverse_temperature": 1.0, "log_partition": 0.1},
        ),
        "Program": (host.Program, {"model": lambda: host.ppl.sample("x", host.normal(2)), "site": "x"}),
        "Pushforward": (host.Pushforward, {"latent_prior": host.normal(2), "generator": lambda z: 2.0 * z}),
        "KALEGuide": (host.KALEGuide, {"energy": energy, "log_partition": 0.0, "penalty": None}),
        "KALE": (
            host.KALE,
            {"base": host.normal(2), "guide": host.KALEGuide(energy), "base_optim": None, "energy_optim": optimiser,
             "energy_steps": 2, "noise_factor": 1, "ema_decay": 0.9, "objective": "kale"},
        ),
        "KALE.run": (lambda **kw: host.KALE(host.normal(2), host.KALEGuide(energy), None, optimiser).run(**kw), run),
        "gradient_penalty": (host.package.gradient_penalty, {"weight": 1.0}),
        "l2_penalty": (host.package.l2_penalty, {"weight": 1.0}),
        "energy_bursts": (host.package.energy_bursts, {"steps": 5, "initial": 10, "every": 50}),
        "temper": (model.temper, {"inverse_temperature": 1.0}),
        "MLP": (
            nn.MLP,
            {"input_shape": (2,), "output_shape": (), "hidden": (3,), "activation": "relu", "lipschitz": 1.0} | key,
        ),
        "ConvEnergy": (nn.ConvEnergy, {"event_shape": (1, 4, 4), "channels": (2,), "activation": "relu"} | key),
        "ConvGenerator": (nn.ConvGenerator, {"latent_dim": 2, "event_shape": (1, 4, 4), "channels": (2,)} | key),
        "ConvEncoder": (nn.ConvEncoder, {"event_shape": (1, 4, 4), "output_dim": 2, "channels": (2,)} | key),
        "real_nvp": (host.package.flows.real_nvp, {"dim": 2, "num_couplings": 2, "hidden": (3,)} | key),
        "AnnealedMALA": (
            infer.AnnealedMALA,
            {"num_steps": 20, "step_size": 0.5, "target_accept_prob": 0.6, "annealing": 0.5, "num_candidates": 2,
             "batch_size": 8},
        ),
        "SMC": (infer.SMC, {"num_particles": 64, "num_groups": 4, "num_moves": 1, "effective_fraction": 0.5}),
        "ShortRun": (infer.ShortRun, {"kernel": "kinetic", "num_steps": 3, "batch_size": 4}),
        "ReplicaExchange": (infer.ReplicaExchange, {"latent": model.latent, "num_rungs": 2, "num_moves": 1}),
        "log_partition": (
            host.package.log_partition,
            {"gebm": model, "method": "importance", "num_samples": 50, "progress_bar": False} | key,
        ),
        "mmd2": (divergences.mmd2, {"x": x, "y": y, "bandwidth": 1.0, "estimator": "biased"}),
        "mmd_test": (divergences.mmd_test, {"x": x, "y": y, "bandwidth": 1.0, "num_permutations": 9} | key),
        "mmd_witness": (divergences.mmd_witness, {"x": x, "y": y, "bandwidth": 1.0}),
        "kale_rkhs": (divergences.kale_rkhs, {"x": x, "y": y, "regularization": 1.0}),
        "f_divergence": (divergences.f_divergence, {"name": "kl"}),
        "Gaussian": (kernels.Gaussian, {"bandwidth": 1.0}),
        "Laplace": (kernels.Laplace, {"bandwidth": 1.0}),
        "InverseMultiquadric": (kernels.InverseMultiquadric, {"bandwidth": 1.0, "power": 0.5}),
        "frechet_distance": (host.package.metrics.frechet_distance, {"x": x, "y": y}),
        "frechet_ratio": (
            host.package.metrics.frechet_ratio, {"x": x, "base": x + 1, "y": y, "num_resamples": 2} | key,
        ),
        "kernel_distance": (host.package.metrics.kernel_distance, {"x": x, "y": y}),
        "precision_recall": (host.package.metrics.precision_recall, {"x": x, "y": y, "num_neighbors": 2}),
        "density_coverage": (host.package.metrics.density_coverage, {"x": x, "y": y, "num_neighbors": 2}),
        "mmd_flow": (
            flows.mmd_flow,
            {"particles": x, "target": y, "num_steps": 2, "step_size": 0.1, "noise": 0.0, "keep_every": 1} | quiet,
        ),
        "kale_flow": (
            flows.kale_flow,
            {"particles": x, "target": y, "num_steps": 2, "step_size": 0.1, "regularization": 1.0} | quiet,
        ),
        "DrawFile.create": (
            lambda **kw: host.package.DrawFile.create(pathlib.Path(folder) / f"{random.random()}.nc", **kw).close(),
            {"num_chains": 2, "num_draws": 5, "variables": {"z": ((2,), "f4", "posterior")}},
        ),
        "DrawStore.create": (
            lambda **kw: host.package.DrawStore.create(pathlib.Path(folder) / f"{random.random()}.zarr", **kw),
            {"num_chains": 2, "num_draws": 5, "variables": {"z": ((2,), "f4", "posterior")}, "num_writers": 1,
             "chunk_size": 2},
        ),
        "decode_to_zarr": (
            lambda **kw: host.package.decode_to_zarr(path=pathlib.Path(folder) / f"{random.random()}.zarr", **kw),
            {"gebm": model, "z": x, "batch_size": 4, "progress_bar": False},
        ),
        "save": (host.package.save, {"gebm": model, "path": pathlib.Path(folder) / "gebm.npz"}),
        "decode": (lambda **kw: list(host.package.decode(**kw)), {"gebm": model, "z": x, "batch_size": 4}),
    }  # fmt: skip
    folder = pathlib.Path(folder)
    known |= functions_of_arrays(host, x, y) | methods(host, model, x, folder) | runs(host, model, folder)
    for name in ("GHMC", "MALT", "MALA", "ULA", "KineticLangevin", "Ex2MCMC"):
        fields = {"model": lambda: None, "step_size": 0.1, "adapt_step_size": True, "adapt_mass_matrix": False}
        known[name] = getattr(infer, name), fields | ({} if name == "ULA" else {"target_accept_prob": 0.5})
    for name in ("GHMC", "KineticLangevin"):
        known[name][1].update(num_steps=2, friction=1.0)
    return known


def functions_of_arrays(host, x, y):
    """Targets: divergences, kernels, witnesses and penalties."""
    key = {"rng_key": host.key(0)[0]} if host.name == "numpyro" else {}
    divergences, kernels = host.divergences, host.divergences.kernels
    x, y = host.array(x), host.array(y)
    energies = {"energy_data": x[:, 0], "energy_base": y[:, 0]}
    kernel = kernels.Gaussian(1.0)
    features = host.call(kernels.random_features, kernel, 2, 3)
    return {
        "kale": (divergences.kale, energies | {"log_partition": 0.1}),
        "donsker_varadhan": (divergences.donsker_varadhan, energies),
        "base_loss": (divergences.base_loss, {"energy_base": y[:, 0]}),
        "batch_log_partition": (divergences.batch_log_partition, {"energy_base": y[:, 0]}),
        "FDivergence.bound": (divergences.f_divergence("kl").bound, {"critic_p": x[:, 0], "critic_q": y[:, 0]}),
        "mmd_witness()": (positional(divergences.mmd_witness(x, y), "points"), {"points": x}),
        "kale_rkhs().witness": (positional(divergences.kale_rkhs(x, y).witness, "points"), {"points": x}),
        "Gaussian()": (positional(kernel, "x", "y"), {"x": x, "y": y}),
        "Gaussian.frequencies": (kernel.frequencies, {"num": 3, "dim": 2} | key),
        "Mixture": (kernels.Mixture, {"kernels": [kernel, kernels.Laplace(1.0)], "weights": [1.0, 2.0]}),
        "RandomFeatures": (kernels.RandomFeatures, {"directions": host.array(np.ones((3, 2))), "scale": 1.0}),
        "RandomFeatures.features": (features.features, {"x": x}),
        "random_features": (kernels.random_features, {"kernel": kernel, "dim": 2, "num_features": 3} | key),
        "fit_kernel": (positional(kernels.fit_kernel, "kernel", "samples"), {"kernel": None, "samples": x}),
        "median_distance": (positional(kernels.median_distance, "samples"), {"samples": x}),
        "squared_distances": (kernels.squared_distances, {"x": x, "y": y}),
        "spectral_norm_bound": (host.nn.spectral_norm_bound, {"weight": x, "num_iterations": 2}),
        "sum_of_penalties": (
            positional(host.package.sum_of_penalties, "penalties"), {"penalties": host.package.l2_penalty(1.0)},
        ),
    }  # fmt: skip


def methods(host, model, x, folder):
    """Targets: what distributions, networks and training do, and files."""
    key = {"key": host.key(0)[0]} if host.name == "numpyro" else {}
    rng_key = {"rng_key": host.key(0)[0]} if host.name == "numpyro" else {}
    x = host.array(x)
    base = host.Pushforward(host.normal(2), lambda z: 2.0 * z)
    coupling = {"dim": 2, "hidden": (3,), "swap": True} | rng_key
    flow = host.call(host.package.flows.real_nvp, 2, 1, (3,))
    kale = host.KALE(host.normal(2), host.KALEGuide(host.call(host.nn.MLP, (2,), (), (3,))), None, host.sgd(1e-3))
    host.package.save(host.GEBM(base, host.call(host.nn.MLP, (2,), (), (3,))), folder / "saved.npz")
    losses = host.package.training.KALELosses(*np.ones((5, 9)))
    known = {
        "EnergyTiltedPrior": (host.package.EnergyTiltedPrior, {"gebm": model, "validate_args": True}),
        "GEBM.sample": (model.sample, {"sample_shape": (2,)} | key),
        "latent.sample": (model.latent.sample, {"sample_shape": (2,)} | key),
        "Program.sample": (program(host).sample, {"sample_shape": (2,)} | key),
        "Pushforward.sample": (base.sample, {"sample_shape": (2,)} | key),
        "GEBM.log_prob": (model.log_prob, {"value": x}),
        "latent.log_prob": (model.latent.log_prob, {"value": x}),
        "GEBM.decode": (model.decode, {"z": x}),
        "GEBM.log_weight": (model.log_weight, {"x": x}),
        "AffineCoupling": (host.package.flows.AffineCoupling, coupling),
        "FlowRatioEnergy": (host.package.flows.FlowRatioEnergy, {"base": flow, "flow": flow}),
        "ContrastiveDivergence": (
            host.package.training.ContrastiveDivergence, {"num_chains": 4, "num_steps": 2, "target_accept_prob": 0.6},
        ),
        "load": (host.package.load, {"path": folder / "saved.npz", "base": base, "energy": None}),
        "delete_checkpoints": (host.package.training.delete_checkpoints, {"directory": folder / "none"}),
        "DrawFile.open": (host.package.DrawFile.open, {"path": folder / "none.nc"}),
        "DrawStore.open": (host.package.DrawStore.open, {"path": folder / "none.zarr"}),
        "read_draws": (host.package.read_draws, {"path": folder / "none.nc"}),
        "plot_losses": (
            lambda **kw: host.package.plot_losses(losses, **kw), {"labels": ["a"], "window": 5, "axes": None},
        ),
    }  # fmt: skip
    if host.name == "numpyro":
        mesh = host.jax.make_mesh((1,), ("data",))
        known["sharded"] = host.infer.sharded, {"mesh": mesh, "axis": "data"}
        state = kale.init(host.key(0)[0], x)
        known["KALE.init"] = kale.init, {"rng_key": host.key(0)[0], "data": x}
        known["KALE.update"] = kale.update, {"state": state, "batch": x}
        known["KALE.evaluate"] = kale.evaluate, {"state": state, "data": x}
    else:
        known["KALE.step"] = kale.step, {"batch": x}
        known["KALE.evaluate"] = kale.evaluate, {"data": x}
    return known


def runs(host, model, folder):
    """Targets: samplers that run, estimates of log Z, and what is made of draws."""
    key = {"rng_key": host.key(0)[0]} if host.name == "numpyro" else {}
    program = lambda: host.ppl.sample("x", model)  # noqa: E731
    smc = host.infer.SMC(num_particles=64, num_groups=4, num_moves=1)
    mcmc = host.mcmc(host.infer.GHMC(program), 10, 10, 2)
    data = host.package.to_arviz(mcmc)
    new = folder / "stream.nc"  # another one in every call
    file = (folder / f"stream-{i}.nc" for i in range(10**6))
    kernel = lambda: host.infer.GHMC(program)  # noqa: E731

    def stream(path, **kwargs):
        path = next(file) if path is new else path
        run = host._mcmc(kernel(), 4, 4, 2) if host.name == "numpyro" else host.infer.VectorizedMCMC(kernel(), 4, 4, 2)
        return host.infer.stream_draws(run, path, **kwargs)

    known = {
        "log_partition_curve": (
            host.package.log_partition_curve, {"gebm": model, "smc": smc, "progress_bar": False} | key,
        ),
        "SMC.run": (smc.run, {"latent": model.latent, "progress_bar": False} | key),
        "ShortRun.run": (
            host.infer.ShortRun(num_steps=3).run,
            {"latent": model.latent, "num_chains": 4, "record_every": 2, "progress_bar": False} | key,
        ),
        "to_arviz": (host.package.to_arviz, {"mcmc": mcmc, "gebm": model, "site": "x", "log_likelihood": False}),
        "diagnose": (host.package.diagnose, {"data": data, "gebm": model, "site": "x"}),
        "stream_draws": (
            stream, {"path": new, "chunk_size": 2, "resume": False, "allow": (), "progress_bar": False} | key,
        ),
    }  # fmt: skip
    if host.name == "pyro":
        known["VectorizedMCMC"] = (
            host.infer.VectorizedMCMC,
            {"kernel": kernel(), "num_samples": 4, "warmup_steps": 4, "num_chains": 2, "thinning": 1,
             "initial_params": None, "disable_progbar": True},
        )  # fmt: skip
        known["get_samples"] = mcmc.get_samples, {"num_samples": 2, "group_by_chain": True}
    return known


def positional(function, *names):
    """A function whose arguments have no name in Python but one in its documentation."""
    return lambda **kwargs: function(*(kwargs[name] for name in names))


def fuzz(host, num_calls, seed=0, limit=20):
    """Counts of what came of the calls, and the errors that named no argument, by name and type.

    Args:
        host: one of `hosts`.
        num_calls: how many.
        seed: of the choice.
        limit: seconds that a call may take.

    Returns:
        `(counts, bad)`: counts of "returned", "named", "unnamed" and "hung", and a list of texts.
    """
    rng, counts, bad = random.Random(seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = targets(host, folder)
        for _ in range(num_calls):
            name = rng.choice(list(known))
            function, kwargs = known[name]
            changed = rng.sample(list(kwargs), min(len(kwargs), rng.choice([1, 1, 1, 2])))
            values = {argument: rng.choice(ODD)(host) for argument in changed}
            signal.signal(signal.SIGALRM, _hang)
            signal.alarm(limit)
            try:
                function(**kwargs | values)
                counts["returned"] += 1
            except Hang:
                counts["hung"] += 1
                bad.append(f"{name}({_shown(values)}): more than {limit} s")
            except Exception as error:
                named = any(re.search(rf"(?<![A-Za-z]){re.escape(a)}(?![A-Za-z])", str(error)) for a in changed)
                counts["named" if named else "unnamed"] += 1
                if not named:
                    bad.append(f"{name}({_shown(values)}): {type(error).__name__}: {str(error)[:160]}")
            finally:
                signal.alarm(0)
    return counts, bad


def _hang(*_):
    raise Hang


def _shown(values):
    return ", ".join(f"{name}={str(value)[:40]}" for name, value in values.items())


if __name__ == "__main__":
    import hosts

    sys.path.append(str(pathlib.Path(__file__).parents[1]))
    if sys.argv[1] == "pyro":
        import torch

        torch.set_default_dtype(torch.float64)
    else:
        import jax

        jax.config.update("jax_enable_x64", True)

    counts, bad = fuzz(hosts.get(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(bad))
    print(dict(counts))
