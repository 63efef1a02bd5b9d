"""Architectures by the names that files use."""

from numpyro_gebm.nn.convolutional import ConvEncoder, ConvEnergy, ConvGenerator
from numpyro_gebm.nn.mlp import MLP

__all__ = ["ARCHITECTURES"]

#: Architectures that `save` and `load` know by name, in both packages.
ARCHITECTURES: dict[str, type[MLP] | type[ConvGenerator] | type[ConvEnergy] | type[ConvEncoder]] = {
    "MLP": MLP,
    "ConvGenerator": ConvGenerator,
    "ConvEnergy": ConvEnergy,
    "ConvEncoder": ConvEncoder,
}
