"""Model files: named arrays and a JSON header in one `.npz`, without pickle, the same for both hosts."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gebm.atomic import replacing

__all__ = ["FORMAT_VERSION", "PRIORS", "LatentPrior", "ModelFile", "named_class", "well_formed"]

#: Version of the format; a reader refuses any other.
FORMAT_VERSION = 1

#: Latent priors that a file can hold, with their parameters.
PRIORS = {"Normal": ("loc", "scale"), "Uniform": ("low", "high"), "Laplace": ("loc", "scale")}


@dataclasses.dataclass(frozen=True, eq=False)
class LatentPrior:
    """A latent prior of independent components.

    Args:
        name: one of `PRIORS`.
        parameters: its parameters, each an array of the shape of one latent.
    """

    name: str
    parameters: Mapping[str, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return next(iter(self.parameters.values())).shape


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFile:
    r"""What a file holds of a GEBM.

    Args:
        arrays: of base and energy, by names like `base.layers.0.weight` and `energy.layers.0.weight`.
        generator: class and configuration of a generator from `nn`; None for any other.
        energy: class and configuration of an energy from `nn`; None for any other.
        latent_prior: None if it is not among `PRIORS`.
        inverse_temperature: $\beta$; a number, or nested lists of them.
        log_partition: $A$, in the same way; None if it is not known.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model.npz"
        >>> ModelFile({"energy.weight": np.ones(3)}, None, None, None, 2.0, None).write(path)
        >>> ModelFile.read(path).arrays["energy.weight"].shape
        (3,)
    """

    arrays: Mapping[str, np.ndarray]
    generator: dict[str, Any] | None
    energy: dict[str, Any] | None
    latent_prior: LatentPrior | None
    inverse_temperature: Any
    log_partition: Any

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Args:
            path: where to.
        """
        prior = self.latent_prior
        parameters = {} if prior is None else prior.parameters
        arrays = {**self.arrays, **{f"latent_prior.{name}": value for name, value in parameters.items()}}
        header: dict[str, Any] = {
            "format": "gebm",
            "format_version": FORMAT_VERSION,
            "generator": self.generator,
            "energy": self.energy,
            "latent_prior": None if prior is None else {"class": prior.name, "shape": list(prior.shape)},
            "inverse_temperature": self.inverse_temperature,
            "log_partition": self.log_partition,
            "keys": sorted(arrays),
        }
        header["sha256"] = _digest(header, arrays)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "ModelFile":
        """Read a file and check that it is whole.

        Args:
            path: the file.

        Returns:
            A `ModelFile`.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is truncated, damaged, of another kind or of another format version.
        """
        header, arrays = _read(path)
        with well_formed(path):
            prior = header["latent_prior"]
            if prior is not None:
                names = named_class(prior, PRIORS, "a latent prior")
                prior = LatentPrior(prior["class"], {name: arrays.pop(f"latent_prior.{name}") for name in names})
                kinds = {(value.shape, value.dtype.kind) for value in prior.parameters.values()}
                if kinds != {(prior.shape, "f")}:
                    raise TypeError("parameters of the latent prior of different shapes, or that are no numbers")
            for name in ("generator", "energy"):
                if header[name] is not None:
                    _check_described(header[name], len(arrays))
            for name in ("inverse_temperature", "log_partition"):
                if header[name] is not None and np.asarray(header[name]).dtype.kind not in "fiu":
                    raise TypeError(f"{name} {header[name]!r}")
            fields = {name: header[name] for name in ("generator", "energy", "inverse_temperature", "log_partition")}
            return cls(arrays, latent_prior=prior, **fields)

    def check_fit(self, path: str | os.PathLike[str], expected: Mapping[str, Any]) -> None:
        """Check that the arrays fit those that they are to fill.

        Args:
            path: the file, for the message.
            expected: arrays or tensors of the same names and shapes.

        Raises:
            ValueError: if a name is missing or too many, or a shape is another.
        """
        missing, unexpected = sorted(expected.keys() - self.arrays.keys()), sorted(self.arrays.keys() - expected.keys())
        if missing or unexpected:
            raise ValueError(f"{path} does not fit: missing keys {missing}, unexpected keys {unexpected}.")
        for key, value in expected.items():
            got, shape = self.arrays[key].shape, tuple(value.shape)
            if got != shape:
                raise ValueError(f"{path} does not fit: expected {key} of shape {shape}; got {got}.")


@contextlib.contextmanager
def well_formed(path: str | os.PathLike[str]) -> Iterator[None]:
    """What a header makes go wrong within the block is a `ValueError` that names the file.

    Args:
        path: the file.
    """
    try:
        yield
    except (AttributeError, KeyError, MemoryError, OverflowError, RecursionError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} has a malformed header: {reason[:200]}.") from error


def _check_described(description, num_arrays):
    """Check the description of a network, which must not be deeper than the file has arrays."""
    if not isinstance(description["class"], str) or not isinstance(description["config"], dict):
        raise TypeError(f"a network described by {description!r}"[:200])
    for name, value in description["config"].items():
        if isinstance(value, list) and len(value) > num_arrays + 8:
            raise TypeError(f"{name} of length {len(value)} for {num_arrays} arrays")


def named_class(description: Mapping[str, Any], known: Mapping[str, Any], what: str) -> Any:
    """The class that a description names.

    Args:
        description: entry of a header, with a "class".
        known: maps names to what they stand for.
        what: such a class is, for the message.

    Returns:
        The entry of `known`.

    Raises:
        ValueError: if the name is not known.
    """
    if description["class"] not in known:
        raise ValueError(f"Expected {what} in {sorted(known)}; got {description['class']!r}. Update the package.")
    return known[description["class"]]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(str(arrays.pop("header")))
        kind, version = header.get("format"), header.get("format_version")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # whatever zipfile, zlib, NumPy and json make of it
        raise ValueError(f"{path} is not a readable GEBM file (truncated?): {error}") from error
    if (kind, version) != ("gebm", FORMAT_VERSION):
        raise ValueError(
            f"Expected a GEBM file of format version {FORMAT_VERSION}; got {kind!r} {version!r}. Update the package to "
            "read newer files."
        )
    if sorted(arrays) != header.get("keys") or _digest(header, arrays) != header.get("sha256"):
        raise ValueError(f"{path} is damaged: its keys or its checksum differ from those in its header.")
    return header, arrays


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "sha256"}, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
