"""A state of training as a checkpoint file, and back."""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gebm import checkpoint_files
from gebm.array_file import read_arrays
from gebm.checkpoint_files import DamagedCheckpoint, fitting
from gebm.fingerprint import NO_FINGERPRINT, Fingerprint

__all__ = ["TrainingCheckpoint", "delete_checkpoints", "read_latest_checkpoint", "refuse_used", "write_checkpoint"]

_SUFFIX = ".npz"
#: Name of the fingerprint among the arrays of a file.
_FINGERPRINT = "fingerprint"


class TrainingCheckpoint(NamedTuple):
    """What a resumed run of training needs."""

    state: Any  # a `KALEState`
    first: np.ndarray  # base steps taken before the run
    losses: list  # of the run so far
    held_out: np.ndarray | None = None  # values of the looks at held-out data
    best: Any = None  # the best state by them


def write_checkpoint(
    directory: str | os.PathLike[str], step: int, tree: Any, fingerprint: Fingerprint = NO_FINGERPRINT
) -> pathlib.Path:
    """Write a pytree of arrays (random keys among them) to `directory/step-<step>.npz` and keep the newest few.

    Args:
        directory: folder, made if it is not there.
        step: number that orders the checkpoints.
        tree: a pytree of arrays; each is stored under its path in the tree.
        fingerprint: the `Fingerprint` of the run.

    Returns:
        The path written.
    """
    arrays = {name: _to_numpy(leaf) for name, leaf in _named_leaves(tree).items()}
    arrays[_FINGERPRINT] = np.array(str(fingerprint))
    write = functools.partial(np.savez, digest=np.array(_digest(arrays)), **arrays)
    return checkpoint_files.write_checkpoint(directory, step, _SUFFIX, write)


def read_latest_checkpoint(
    path: str | os.PathLike[str],
    like: Any,
    optional: Collection[str] = (),
    check: Callable[[str | None], None] = lambda fingerprint: None,
) -> Any:
    """Read the newest undamaged checkpoint; damaged ones are skipped with a warning.

    Args:
        path: a folder of checkpoints, or one checkpoint.
        like: a pytree of the same structure. JAX arrays in it give shapes, dtypes and kinds of random keys; NumPy
            arrays are restored as they were written, of any shape. An entry of the file that `like` lacks, at the
            root of the tree, is not read.
        optional: entries, at the root or within one, that a file may lack; they are then as in `like`.
        check: raises an error for the fingerprint of another run; it is given None where a file has none.

    Returns:
        The pytree.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if every checkpoint is damaged, or the newest whole one does not fit `like`.
    """
    file, arrays = checkpoint_files.read_latest_checkpoint(path, _SUFFIX, _read)
    fingerprint = arrays.pop(_FINGERPRINT, None)
    check(None if fingerprint is None else str(fingerprint))
    leaves = _named_leaves(like)
    required = [name for name in leaves if not set(_parts(name)) & set(optional)]
    if all(re.fullmatch(r"leaf_\d+", name) for name in arrays):  # of a version that wrote no names, but the order
        arrays = dict(zip(required, [arrays[name] for name in sorted(arrays)])) if len(arrays) == len(required) else {}
    roots = {_root(name) for name in required}
    wrong = [f"{name} is missing" for name in required if name not in arrays]
    wrong += [f"{name} is not expected" for name in arrays if name not in leaves and _root(name) in roots]
    for name, leaf in leaves.items():
        if name in arrays and isinstance(leaf, jax.Array) and arrays[name].shape != (expected := _shape(leaf)):
            wrong.append(f"{name} has shape {arrays[name].shape}, expected {expected}")
    if wrong:
        raise ValueError(
            f"The checkpoint {file} does not fit: {'; '.join(wrong[:5])}{'; ...' * (len(wrong) > 5)}. Resume with the "
            "same networks, optimisers and data."
        )
    with fitting(file):
        restored = [_from_numpy(arrays[name], leaf) if name in arrays else leaf for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def delete_checkpoints(directory: str | os.PathLike[str]) -> None:
    """Delete the checkpoints of a folder, such as those of an abandoned run, and the folder if nothing else is in it.

    Args:
        directory: folder; it need not be there.

    Example:
        >>> delete_checkpoints("a-folder-that-is-not-there")
    """
    checkpoint_files.delete_checkpoints(directory, _SUFFIX)


refuse_used = functools.partial(checkpoint_files.refuse_used, suffix=_SUFFIX)


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(file)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error
    if str(arrays.pop("digest", "")) != _digest(arrays):
        raise DamagedCheckpoint("Its digest does not match its content.")
    return arrays


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _parts(name: str) -> list[str]:
    """The path to a leaf, from the root of the tree."""
    return re.split(r"[.\[\]'\"]+", name.lstrip(".['\""))


def _root(name: str) -> str:
    """Entry at the root of the tree that a leaf belongs to."""
    return _parts(name)[0]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _shape(leaf: Any) -> tuple[int, ...]:
    """Shape of what `_to_numpy` makes, also of an array of several processes."""
    return (jax.random.key_data(leaf) if _is_key(leaf) else leaf).shape


def _from_numpy(array: np.ndarray, like: Any) -> jax.Array | np.ndarray:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jnp.asarray(array, dtype=like.dtype) if isinstance(like, jax.Array) else array


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key}:{arrays[key].dtype.str}:{arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
