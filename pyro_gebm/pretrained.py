"""Trained models that are shipped with the package."""

from typing import NamedTuple

import torch

from gebm.pretrained import feature_file, model_file
from pyro_gebm.gebm import GEBM
from pyro_gebm.io import model_of, network_of

__all__ = ["Features", "load_features", "load_pretrained"]


class Features(NamedTuple):
    """What draws of a model are compared in.

    `network` maps images to features, `(N, 784)` or `(N, 1, 28, 28)` to `(N, 64)`; `reference` are the
    features of the 10,000 test images.
    """

    network: torch.nn.Module
    reference: torch.Tensor


def load_pretrained(name: str) -> GEBM:
    r"""A trained GEBM from the package itself; nothing is fetched.

    "fashion_mnist": images of shape `(784,)` in [-1, 1], latent N(0, I_32); the decoder of a VAE as generator, an MLP
    as energy, $\beta = 1$ with its $A$. "cifar10": images of shape `(3, 32, 32)`, latent N(0, I_64), a convolutional
    energy. `gebm.pretrained.model_card(name)` says how it was made, how good its features are, and the license of its
    data.

    Args:
        name: "fashion_mnist" or "cifar10".

    Returns:
        A `GEBM` in evaluation mode, in single precision, on PyTorch's default device.

    Raises:
        ValueError: if there is no model of this name.

    Example:
        >>> load_pretrained("fashion_mnist").event_shape
        torch.Size([784])
    """
    return model_of(name, model_file(name))


def load_features(name: str) -> Features:
    """The network in whose features draws of a shipped model were compared with data, for `metrics`.

    Args:
        name: as for `load_pretrained`.

    Returns:
        `Features`.

    Raises:
        ValueError: if there is no model of this name.

    Example:
        >>> tuple(load_features("fashion_mnist").network(torch.zeros(2, 784)).shape)
        (2, 64)
    """
    file = feature_file(name)
    network = network_of(name, file.description, "features", file.arrays)
    return Features(network, torch.tensor(file.reference, device=torch.get_default_device()))
