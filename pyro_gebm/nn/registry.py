"""Architectures by the names that files use."""

from pyro_gebm.nn.architectures import MLP, ConvEncoder, ConvEnergy, ConvGenerator

__all__ = ["ARCHITECTURES"]

#: Architectures that `save` and `load` know by name, in both packages.
ARCHITECTURES: dict[str, type[MLP] | type[ConvGenerator] | type[ConvEnergy] | type[ConvEncoder]] = {
    "MLP": MLP,
    "ConvGenerator": ConvGenerator,
    "ConvEnergy": ConvEnergy,
    "ConvEncoder": ConvEncoder,
}
