"""Generators and energies: the architectures that exist in both packages, and an adapter for others.

Weights are laid out as PyTorch lays them out, so that a file saved in one package loads in the other.
"""

from numpyro_gebm.nn.applied import Applied
from numpyro_gebm.nn.bounds import spectral_norm_bound
from numpyro_gebm.nn.convolutional import ConvEncoder, ConvEnergy, ConvGenerator
from numpyro_gebm.nn.mlp import MLP
from numpyro_gebm.nn.registry import ARCHITECTURES

__all__ = ["ARCHITECTURES", "MLP", "Applied", "ConvEncoder", "ConvEnergy", "ConvGenerator", "spectral_norm_bound"]
