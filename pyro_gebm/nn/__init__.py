"""Generators and energies: the architectures that exist in both packages.

Any `torch.nn.Module` can be a generator or an energy; these are laid out so that a file saved in one package loads
in the other.
"""

from pyro_gebm.nn.bounds import spectral_norm_bound
from pyro_gebm.nn.convolutional import ConvEncoder, ConvEnergy, ConvGenerator
from pyro_gebm.nn.mlp import MLP
from pyro_gebm.nn.registry import ARCHITECTURES

__all__ = ["ARCHITECTURES", "MLP", "ConvEncoder", "ConvEnergy", "ConvGenerator", "spectral_norm_bound"]
