"""A trained GEBM to and from disk, in a format that both packages read."""

import hashlib
import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_gebm import nn
from numpyro_gebm.base import Pushforward, trained_part, with_trained_part
from numpyro_gebm.callables import array_name
from numpyro_gebm.gebm import GEBM

__all__ = ["load", "save"]

FORMAT_VERSION = 1


def save(gebm, path):
    r"""Write a GEBM to one `.npz` file, without pickle.

    The file holds the arrays of base and energy under their PyTorch-style names and a JSON header: format version,
    architectures (for classes of `nn`), latent prior, $\beta$, $A$, the list of keys, and a SHA-256 of it all. It is
    written to a temporary file and then moved into place.

    Args:
        gebm: a `GEBM` whose `log_partition` is None or an array.
        path: where to; the suffix is yours to choose.

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
    if callable(gebm.log_partition):
        raise TypeError("A callable log_partition cannot be saved: pass its value at this inverse temperature.")
    is_pushforward = isinstance(gebm.base, Pushforward)
    arrays = {
        **_named_arrays("base", trained_part(gebm.base)),
        **_named_arrays("energy", gebm.energy),
    }
    latent_prior = None
    if is_pushforward:
        latent_prior, parameters = _describe_prior(gebm.base.latent_prior)
        arrays.update(parameters)
    header = {
        "format": "gebm",
        "format_version": FORMAT_VERSION,
        "generator": _describe(gebm.base.generator) if is_pushforward else None,
        "energy": _describe(gebm.energy),
        "latent_prior": latent_prior,
        "inverse_temperature": np.asarray(gebm.inverse_temperature).tolist(),
        "log_partition": None if gebm.log_partition is None else np.asarray(gebm.log_partition).tolist(),
        "keys": sorted(arrays),
    }
    header["sha256"] = _digest(header, arrays)
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
    os.replace(temporary, path)


def load(path, base=None, energy=None):
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
    header, arrays = _read(path)
    if base is None:
        if header["generator"] is None or header["latent_prior"] is None:
            raise ValueError(f"{path} was saved with a base that is not built from `nn`: pass `base=`.")
        base = Pushforward(_build_prior(header["latent_prior"], arrays), _build(header["generator"]))
    if energy is None:
        if header["energy"] is None:
            raise ValueError(f"{path} was saved with an energy that is not from `nn`: pass `energy=`.")
        energy = _build(header["energy"])
    part = trained_part(base)
    expected = {*_named_arrays("base", part), *_named_arrays("energy", energy)}
    found = {key for key in arrays if not key.startswith("latent_prior.")}
    if expected != found:
        raise ValueError(
            f"{path} does not fit: missing keys {sorted(expected - found)}, unexpected keys {sorted(found - expected)}."
        )
    base = with_trained_part(base, eqx.nn.inference_mode(_filled("base", part, arrays, path)))
    return GEBM(
        base,
        eqx.nn.inference_mode(_filled("energy", energy, arrays, path)),
        inverse_temperature=np.asarray(header["inverse_temperature"]),
        log_partition=None if header["log_partition"] is None else np.asarray(header["log_partition"]),
    )


def _read(path):
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(str(arrays.pop("header")))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable GEBM file (truncated?): {error}") from error
    if header.get("format") != "gebm" or header.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Expected a GEBM file of format version {FORMAT_VERSION}; got {header.get('format')!r} "
            f"{header.get('format_version')!r}. Update the package to read newer files."
        )
    if sorted(arrays) != header["keys"] or _digest(header, arrays) != header["sha256"]:
        raise ValueError(f"{path} is damaged: its keys or its checksum are not those of its header.")
    return header, arrays


def _digest(header, arrays):
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "sha256"}, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _describe(network):
    name = type(network).__name__
    if nn.ARCHITECTURES.get(name) is not type(network):
        return None
    return {"class": name, "config": network.config}


def _build(description):
    if description["class"] not in nn.ARCHITECTURES:
        raise ValueError(f"Expected an architecture in {sorted(nn.ARCHITECTURES)}; got {description['class']!r}.")
    return nn.ARCHITECTURES[description["class"]](**description["config"], rng_key=jax.random.key(0))


def _describe_prior(prior):
    """Header entry and arrays of a latent prior; `(None, {})` if it is not one that both packages know."""
    shape = prior.shape()
    if prior.batch_shape != ():
        return None, {}
    while isinstance(prior, (dist.Independent, dist.ExpandedDistribution)):
        prior = prior.base_dist
    for name, parameters in _PRIORS.items():
        if type(prior) is getattr(dist, name):
            values = {p: np.broadcast_to(np.asarray(jnp.asarray(getattr(prior, p))), shape) for p in parameters}
            return {"class": name, "shape": list(shape)}, {f"latent_prior.{p}": v for p, v in values.items()}
    return None, {}


def _build_prior(description, arrays):
    parameters = {p: jnp.asarray(arrays[f"latent_prior.{p}"]) for p in _PRIORS[description["class"]]}
    return getattr(dist, description["class"])(**parameters).to_event(len(description["shape"]))


#: Latent priors that `save` and `load` know by name, with their parameters.
_PRIORS = {"Normal": ("loc", "scale"), "Uniform": ("low", "high"), "Laplace": ("loc", "scale")}


def _named_arrays(prefix, tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {array_name(prefix, path): np.asarray(leaf) for path, leaf in leaves}


def _filled(prefix, tree, arrays, file):
    def fill(path, leaf):
        if not eqx.is_array(leaf):
            return leaf
        key = array_name(prefix, path)
        if arrays[key].shape != leaf.shape:
            raise ValueError(f"{file} does not fit: expected {key} of shape {leaf.shape}; got {arrays[key].shape}.")
        return jnp.asarray(arrays[key])

    return jax.tree_util.tree_map_with_path(fill, tree)
