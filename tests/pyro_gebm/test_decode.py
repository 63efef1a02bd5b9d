"""Stored latents to draws of the model: what PyTorch adds."""

import hosts
import numpy as np
import torch

from pyro_gebm import GEBM, Pushforward, decode, nn

HOST = hosts.get("pyro")


def test_without_gradient_in_the_dtype_of_the_model():
    network = nn.MLP((2,), (3,)).to(torch.float32)
    with HOST.float32():
        prior = HOST.normal(2)
    gebm = GEBM(Pushforward(prior, network), lambda x: x.sum(-1))
    for x in decode(gebm, np.zeros((5, 2)), 2):
        assert x.dtype == torch.float32 and not x.requires_grad and x.device == network.layers[0].weight.device
        assert torch.is_grad_enabled()  # between batches the caller's code runs as it did


def test_random_numbers_are_left_alone():
    model = HOST.linear_gaussian(1.5)
    state = torch.get_rng_state()
    list(decode(model, np.zeros((5, 2))))
    assert torch.equal(torch.get_rng_state(), state)
