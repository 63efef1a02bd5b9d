"""Checkpoints of a training run: written atomically, read back from the newest that is whole."""

import hashlib
import math
import os
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Checkpoints", "delete_checkpoints", "read_latest_checkpoint", "write_checkpoint"]

#: Checkpoints kept in a folder.
KEEP = 3


class Checkpoints:
    """Writes the checkpoints of a run: at its start, every so many steps, and at its end.

    Args:
        directory: folder, or None for no checkpoints.
        every: steps between checkpoints, or None for none in between.

    Raises:
        ValueError: for `every` without a directory, or below 1.
    """

    def __init__(self, directory, every):
        if every is not None and (directory is None or every < 1):
            raise ValueError(
                f"Expected checkpoint_every >= 1 with a checkpoint_dir; got checkpoint_every={every}, "
                f"checkpoint_dir={directory!r}."
            )
        self.directory, self.every, self.written = directory, every, None

    def until_next(self, step):
        """Steps from `step` to the next checkpoint."""
        return math.inf if self.every is None else self.every - step % self.every

    def write_if_due(self, step, tree):
        """Write one at the start, and where `every` divides the step."""
        if self.written is None or (self.every is not None and step % self.every == 0):
            self.write(step, tree)

    def write(self, step, tree):
        """Write one now."""
        if self.directory is not None:
            write_checkpoint(self.directory, step, tree)
        self.written = step


def write_checkpoint(directory, step, tree):
    """Write a pytree of arrays (random keys among them) to `directory/step-<step>.npz` and keep the newest few.

    Args:
        directory: folder, made if it is not there.
        step: number that orders the checkpoints.
        tree: a pytree of arrays.

    Returns:
        The path written.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {f"leaf_{i:05d}": _to_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    path = directory / f"step-{step:09d}.npz"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, digest=np.array(_digest(arrays)), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in _checkpoints(directory)[KEEP:]:
        old.unlink()
    return path


def read_latest_checkpoint(path, like):
    """Read the newest checkpoint that is whole; damaged ones are passed over with a warning.

    Args:
        path: a folder of checkpoints, or one checkpoint.
        like: a pytree of the same structure. JAX arrays in it give shapes, dtypes and kinds of random keys; NumPy
            arrays are restored as they were written, of any shape.

    Returns:
        The pytree.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if every checkpoint is damaged, or the newest whole one does not fit `like`.
    """
    path = pathlib.Path(path)
    candidates = _checkpoints(path) if path.is_dir() else [path]
    if not candidates or not candidates[0].exists():
        raise FileNotFoundError(f"Expected checkpoints (step-*.npz) at {path}; found none.")
    for candidate in candidates:
        try:
            with open(candidate, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            whole = str(arrays.pop("digest")) == _digest(arrays)
        except Exception:
            whole = False
        if whole:
            return _restore(candidate, [arrays[key] for key in sorted(arrays)], like)
        warnings.warn(f"The checkpoint {candidate} is damaged; falling back to the one before.", stacklevel=2)
    raise ValueError(f"Every checkpoint at {path} is damaged.")


def delete_checkpoints(directory):
    """Delete the checkpoints of a folder, such as a run that was given up has left.

    Args:
        directory: folder; it need not be there.
    """
    directory = pathlib.Path(directory)
    for old in _checkpoints(directory) if directory.exists() else []:
        old.unlink()


def _checkpoints(directory):
    """Checkpoints of a folder, newest first."""
    return sorted((p for p in directory.iterdir() if re.fullmatch(r"step-\d+\.npz", p.name)), reverse=True)


def _restore(path, arrays, like):
    leaves, treedef = jax.tree.flatten(like)
    if len(arrays) != len(leaves) or any(
        isinstance(leaf, jax.Array) and _to_numpy(leaf).shape != a.shape for a, leaf in zip(arrays, leaves)
    ):
        raise ValueError(
            f"The checkpoint {path} does not fit: expected {len(leaves)} arrays of the shapes of this training run; "
            f"got {len(arrays)} others. Resume with the same networks and optimisers."
        )
    return treedef.unflatten([_from_numpy(array, leaf) for array, leaf in zip(arrays, leaves)])


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf):
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(array, like):
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jnp.asarray(array, dtype=like.dtype) if isinstance(like, jax.Array) else array


def _digest(arrays):
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key}:{arrays[key].dtype.str}:{arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
