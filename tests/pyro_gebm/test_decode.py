"""Stored latents to draws of the model: what PyTorch adds."""

import numpy as np
import torch
from pyro_cases import linear_gaussian_gebm, standard_normal

from pyro_gebm import GEBM, Pushforward, decode, nn


def test_without_gradient_in_the_dtype_of_the_model():
    network = nn.MLP((2,), (3,)).to(torch.float32)
    gebm = GEBM(Pushforward(standard_normal(2, torch.float32), network), lambda x: x.sum(-1))
    for x in decode(gebm, np.zeros((5, 2)), 2):
        assert x.dtype == torch.float32 and not x.requires_grad and x.device == network.layers[0].weight.device
        assert torch.is_grad_enabled()  # between batches the caller's code runs as it did


def test_random_numbers_are_left_alone():
    model = linear_gaussian_gebm(1.5)
    state = torch.get_rng_state()
    list(decode(model, np.zeros((5, 2))))
    assert torch.equal(torch.get_rng_state(), state)
