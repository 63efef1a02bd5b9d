"""The shipped models: whole, known by their hashes, and what their card says."""

import hashlib
import pathlib

import numpy as np
import pytest

from gebm import pretrained

FOLDER = pathlib.Path(pretrained.__file__).parent / "pretrained_files"


@pytest.mark.parametrize("name", pretrained.PRETRAINED)
def test_files_are_those_of_the_card(name):
    hashes = pretrained.model_card(name)["sha256"]
    assert {path.name for path in FOLDER.glob(f"{name}*.npz")} == set(hashes)
    for file, expected in hashes.items():
        assert hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() == expected
        assert (FOLDER / file).stat().st_size < 5e6


@pytest.mark.parametrize("call", ["load_pretrained", "load_features"])
def test_an_unknown_name_is_refused(host, call):
    with pytest.raises(ValueError, match=r"Expected name in \('fashion_mnist', 'cifar10'\); got 'mnist'"):
        getattr(host.package, call)("mnist")


@pytest.mark.parametrize("name, most", [("fashion_mnist", 0.6), pytest.param("cifar10", 1.0, marks=pytest.mark.slow)])
def test_twenty_steps_of_a_shipped_model_are_better_than_its_base(host, name, most):
    gebm, features = host.package.load_pretrained(name), host.package.load_features(name)
    assert gebm.log_partition is not None
    z = host.call(host.infer.ShortRun(num_steps=20).run, gebm.latent, 400, progress_bar=False).z
    x, base = gebm.decode(z[-1]), gebm.decode(z[0])
    dim = len(gebm.event_shape)
    of = [np.asarray(host.apply(features.network, host.numpy(a).astype(np.float32), dim).tolist()) for a in (x, base)]
    assert of[0].shape == (400, 64)
    reference = np.asarray(host.numpy(features.reference), float)
    value, error = host.call(host.package.metrics.frechet_ratio, *map(host.array, (*of, reference)))
    assert float(value) + 4 * float(error) < most


@pytest.mark.parametrize("name", pretrained.PRETRAINED)
def test_log_partition_of_the_card_is_that_of_the_model(host, name):
    card, gebm = pretrained.model_card(name), host.package.load_pretrained(name)
    assert float(gebm.log_partition) == pytest.approx(card["log_partition"]["value"], rel=1e-6)


@pytest.mark.parametrize("name, least", [("fashion_mnist", 0.88), ("cifar10", 0.7)])
def test_the_accuracy_of_the_features_is_said(name, least):
    assert pretrained.model_card(name)["accuracy_of_features"] > least
