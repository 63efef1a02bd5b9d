"""A trained GEBM to and from disk, in a format that both packages read."""

import os
from collections.abc import Mapping
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from gebm.model_file import PRIORS, LatentPrior, ModelFile, named_class, well_formed
from gebm.validation import instance, path_of
from numpyro_gebm import nn
from numpyro_gebm.base import Pushforward, trained_part, with_trained_part
from numpyro_gebm.callables import Energy, array_name
from numpyro_gebm.gebm import GEBM

__all__ = ["load", "model_of", "network_of", "save"]


def save(gebm: GEBM, path: str | os.PathLike[str]) -> None:
    r"""Write a GEBM to one `.npz` file, without pickle.

    The file holds the arrays of base and energy under their PyTorch-style names and a JSON header: format version,
    architectures (for classes of `nn`), latent prior, $\beta$, $A$, the list of keys, and a SHA-256 of it all. It
    is written whole or not at all.

    Args:
        gebm: a `GEBM` whose `log_partition` is None or an array.
        path: the file, with any suffix.

    Raises:
        TypeError: if `log_partition` is a callable (evaluate it first).

    Example:
        >>> import numpyro.distributions as dist, tempfile, os
        >>> from numpyro_gebm import GEBM, Pushforward
        >>> keys = jax.random.split(jax.random.key(0))
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), nn.MLP((2,), (3,), rng_key=keys[0]))
        >>> path = os.path.join(tempfile.mkdtemp(), "gebm.npz")
        >>> save(GEBM(base, nn.MLP((3,), (), rng_key=keys[1]), log_partition=0.5), path)
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
        inverse_temperature=np.asarray(gebm.inverse_temperature).tolist(),
        log_partition=None if gebm.log_partition is None else np.asarray(gebm.log_partition).tolist(),
    )
    file.write(path)


def load(
    path: str | os.PathLike[str],
    base: dist.Distribution | None = None,
    energy: Energy | None = None,
) -> GEBM:
    """Read a GEBM written by `save`, in either package.

    Args:
        path: the file.
        base: a base of the right structure whose arrays are filled; None rebuilds an `nn` generator and its latent
            prior from the header.
        energy: an energy of the right structure whose arrays are filled; None rebuilds an `nn` energy.

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
    base: dist.Distribution | None = None,
    energy: Energy | None = None,
) -> GEBM:
    """The GEBM of a file that was read: see `load`; the path is for messages."""
    if base is None:
        if file.generator is None or file.latent_prior is None:
            raise ValueError(f"{path} was saved with a base that is not built from `nn`: pass `base=`.")
        part = _build(path, file.generator)
    else:
        part = trained_part(base)
    if energy is None:
        if file.energy is None:
            raise ValueError(f"{path} was saved with an energy that is not from `nn`: pass `energy=`.")
        energy = _build(path, file.energy)
    file.check_fit(path, {**_named_arrays("base", part), **_named_arrays("energy", energy)})
    part = eqx.nn.inference_mode(_filled("base", part, file.arrays))
    if base is None:
        base = Pushforward(_build_prior(cast(LatentPrior, file.latent_prior)), part)
    else:
        base = with_trained_part(base, part)
    return GEBM(
        base,
        eqx.nn.inference_mode(_filled("energy", energy, file.arrays)),
        inverse_temperature=np.asarray(file.inverse_temperature),
        log_partition=None if file.log_partition is None else np.asarray(file.log_partition),
    )


def network_of(path: str | os.PathLike[str], description: Any, prefix: str, arrays: Any) -> Any:
    """A network of `nn` by its description, filled with arrays of that prefix; the path is for messages."""
    return eqx.nn.inference_mode(_filled(prefix, _build(path, description), arrays))


def _describe(network: Any) -> dict[str, Any] | None:
    name = type(network).__name__
    if nn.ARCHITECTURES.get(name) is not type(network):
        return None
    return {"class": name, "config": network.config}


def _build(path: Any, description: dict[str, Any]) -> Any:
    """The architecture, with shapes and dtypes in place of its arrays."""
    with well_formed(path):
        network = named_class(description, nn.ARCHITECTURES, "an architecture")
        return eqx.filter_eval_shape(lambda key: network(**description["config"], rng_key=key), jax.random.key(0))


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _describe_prior(prior: dist.Distribution) -> LatentPrior | None:
    """A latent prior as a file holds it; None if it is not one that both packages know."""
    shape, is_batch = prior.shape(), prior.batch_shape != ()
    while isinstance(prior, (dist.Independent, dist.ExpandedDistribution)):
        prior = prior.base_dist
    for name, parameters in PRIORS.items():
        if type(prior) is getattr(dist, name) and not is_batch:
            values = {p: np.broadcast_to(np.asarray(jnp.asarray(getattr(prior, p))), shape) for p in parameters}
            return LatentPrior(name, values)
    return None


def _build_prior(prior: LatentPrior) -> dist.Distribution:
    parameters = {name: jnp.asarray(value) for name, value in prior.parameters.items()}
    return getattr(dist, prior.name)(**parameters).to_event(len(prior.shape))


def _named_arrays(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, _is_array))
    as_shapes = any(isinstance(leaf, jax.ShapeDtypeStruct) for _, leaf in leaves)
    return {array_name(prefix, path): leaf if as_shapes else np.asarray(leaf) for path, leaf in leaves}


def _filled(prefix: str, tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    def fill(path: Any, leaf: Any) -> Any:
        return jnp.asarray(arrays[array_name(prefix, path)]) if _is_array(leaf) else leaf

    return jax.tree_util.tree_map_with_path(fill, tree)
