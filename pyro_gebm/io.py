"""A trained GEBM to and from disk, in a format that both packages read."""

import os
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution

from gebm.model_file import PRIORS, LatentPrior, ModelFile, named_class, well_formed
from gebm.validation import instance, path_of
from pyro_gebm import nn
from pyro_gebm.base import Pushforward, trained_part
from pyro_gebm.callables import Energy
from pyro_gebm.gebm import GEBM

__all__ = ["load", "model_of", "network_of", "save"]


def save(gebm: GEBM, path: str | os.PathLike[str]) -> None:
    r"""Write a GEBM to one `.npz` file, without pickle.

    The file holds the arrays of base and energy under their PyTorch-style names and a JSON header: format version,
    architectures (for classes of `nn`), latent prior, $\beta$, $A$, the list of keys, and a SHA-256 of it all. It
    is written whole or not at all.

    Args:
        gebm: a `GEBM` whose `log_partition` is None or a tensor.
        path: the file, with any suffix.

    Raises:
        TypeError: if `log_partition` is a callable (evaluate it first).

    Example:
        >>> import pyro.distributions as dist, tempfile, os
        >>> from pyro_gebm import GEBM, Pushforward
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), nn.MLP((2,), (3,)))
        >>> path = os.path.join(tempfile.mkdtemp(), "gebm.npz")
        >>> save(GEBM(base, nn.MLP((3,), ()), log_partition=0.5), path)
        >>> load(path).log_partition.item()
        0.5
    """
    instance("gebm", gebm, GEBM)
    path = path_of("path", path)
    if callable(gebm.log_partition):
        raise TypeError("A callable log_partition cannot be saved: pass its value at this inverse temperature.")
    generator, prior = None, None
    if isinstance(gebm.base, Pushforward):
        generator, prior = _describe(gebm.base.generator), _describe_prior(gebm.base.latent_prior)
    file = ModelFile(
        arrays={**_named_arrays("base", trained_part(gebm.base)), **_named_arrays("energy", gebm.energy)},
        generator=generator,
        energy=_describe(gebm.energy),
        latent_prior=prior,
        inverse_temperature=gebm.inverse_temperature.tolist(),
        log_partition=None if gebm.log_partition is None else gebm.log_partition.tolist(),
    )
    file.write(path)


def load(
    path: str | os.PathLike[str],
    base: torch.distributions.Distribution | None = None,
    energy: Energy | None = None,
) -> GEBM:
    """Read a GEBM written by `save`, in either package.

    Args:
        path: the file.
        base: a base of the right structure whose modules are filled; None rebuilds an `nn` generator and its latent
            prior from the header, on PyTorch's default device.
        energy: an energy module of the right structure, to be filled; None rebuilds an `nn` energy.

    Returns:
        A `GEBM`, in evaluation mode.

    Raises:
        ValueError: if the file is truncated, not of this format, or its keys or shapes are not those expected; or if
            `base` or `energy` is needed and not given.
    """
    return model_of(path, ModelFile.read(path_of("path", path)), base, energy)


def model_of(
    path: str | os.PathLike[str],
    file: ModelFile,
    base: torch.distributions.Distribution | None = None,
    energy: Energy | None = None,
) -> GEBM:
    """The GEBM of a file that was read: see `load`; the path is for messages."""
    if base is None:
        if file.generator is None or file.latent_prior is None:
            raise ValueError(f"{path} was saved with a base that is not built from `nn`: pass `base=`.")
        part = _build(path, file.generator, _dtype(path, "base", file.arrays))
    else:
        part = trained_part(base)
    if energy is None:
        if file.energy is None:
            raise ValueError(f"{path} was saved with an energy that is not from `nn`: pass `energy=`.")
        energy = _build(path, file.energy, _dtype(path, "energy", file.arrays))
    file.check_fit(path, {**_named_tensors("base", part), **_named_tensors("energy", energy)})
    for prefix, module in (("base", part), ("energy", energy)):
        _fill(prefix, module, file.arrays)
    if base is None:
        base = Pushforward(_build_prior(cast(LatentPrior, file.latent_prior)), cast(torch.nn.Module, part))
    return GEBM(base, energy, inverse_temperature=file.inverse_temperature, log_partition=file.log_partition)


def network_of(path: str | os.PathLike[str], description: Any, prefix: str, arrays: Any) -> torch.nn.Module:
    """A network of `nn` by its description, filled with arrays of that prefix; the path is for messages."""
    network = _build(path, description, _dtype(path, prefix, arrays))
    _fill(prefix, network, arrays)
    return network


def _describe(network: Any) -> dict[str, Any] | None:
    name = type(network).__name__
    if nn.ARCHITECTURES.get(name) is not type(network):
        return None
    return {"class": name, "config": network.config}


def _build(path: Any, description: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """The architecture, without memory or random numbers for its values."""
    with well_formed(path), torch.device("meta"):
        return named_class(description, nn.ARCHITECTURES, "an architecture")(**description["config"]).to(dtype)


def _dtype(path: Any, prefix: str, arrays: Mapping[str, np.ndarray]) -> torch.dtype:
    if not any(key.startswith(f"{prefix}.") for key in arrays):
        raise ValueError(f"{path} does not fit: it has no arrays of the {prefix}.")
    return next(_tensor(value).dtype for key, value in arrays.items() if key.startswith(f"{prefix}."))


def _describe_prior(prior: torch.distributions.Distribution) -> LatentPrior | None:
    """A latent prior as a file holds it; None if it is not one that both packages know."""
    shape, is_batch = prior.batch_shape + prior.event_shape, prior.batch_shape != ()
    while isinstance(prior, (torch.distributions.Independent, ExpandedDistribution)):
        prior = prior.base_dist
    for name, parameters in PRIORS.items():
        if isinstance(prior, getattr(torch.distributions, name)) and not is_batch:
            values = {p: np.broadcast_to(getattr(prior, p).detach().cpu().numpy(), shape) for p in parameters}
            return LatentPrior(name, values)
    return None


def _build_prior(prior: LatentPrior) -> torch.distributions.Distribution:
    parameters = {name: _tensor(value) for name, value in prior.parameters.items()}
    return getattr(dist, prior.name)(**parameters).to_event(len(prior.shape))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, device=torch.get_default_device())


def _named_tensors(prefix: str, module: Any) -> dict[str, torch.Tensor]:
    if not isinstance(module, torch.nn.Module):
        return {}
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def _named_arrays(prefix: str, module: Any) -> dict[str, np.ndarray]:
    return {key: value.detach().cpu().numpy() for key, value in _named_tensors(prefix, module).items()}


def _fill(prefix: str, module: Any, arrays: Mapping[str, np.ndarray]) -> None:
    if isinstance(module, torch.nn.Module):
        if any(value.is_meta for value in module.state_dict().values()):
            module.to_empty(device=torch.get_default_device())
        module.load_state_dict({key: _tensor(arrays[f"{prefix}.{key}"]) for key in module.state_dict()})
        module.eval().requires_grad_(False)
