"""A state of training as a checkpoint file, and back."""

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from gebm import checkpoint_files
from gebm.checkpoint_files import DamagedCheckpoint, fitting
from gebm.fingerprint import NO_FINGERPRINT, Fingerprint

__all__ = [
    "delete_checkpoints",
    "get_rng_state",
    "read_latest_checkpoint",
    "refuse_used",
    "set_rng_state",
    "write_checkpoint",
]

_SUFFIX = ".pt"


def write_checkpoint(
    directory: str | os.PathLike[str], step: int, state: dict[str, Any], fingerprint: Fingerprint = NO_FINGERPRINT
) -> pathlib.Path:
    """Write a state dictionary to `directory/step-<step>.pt` and keep the newest few.

    Args:
        directory: folder, made if it is not there.
        step: number that orders the checkpoints.
        state: nested dictionaries of tensors and numbers.
        fingerprint: the `Fingerprint` of the run.

    Returns:
        The path written.
    """
    content = io.BytesIO()
    torch.save({**state, "fingerprint": str(fingerprint)}, content)
    stored = hashlib.sha256(content.getbuffer()).digest(), content.getbuffer()
    return checkpoint_files.write_checkpoint(directory, step, _SUFFIX, lambda file: file.writelines(stored))


def read_latest_checkpoint(
    path: str | os.PathLike[str],
    device: torch.device,
    check: Callable[[str | None], None] = lambda fingerprint: None,
) -> dict[str, Any]:
    """Read the newest undamaged checkpoint; damaged ones are skipped with a warning.

    Args:
        path: a folder of checkpoints, or one checkpoint.
        device: where its tensors go.
        check: raises an error for the fingerprint of another run; it is given None where a file has none.

    Returns:
        The state dictionary.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if every checkpoint is damaged, or the newest whole one is no state dictionary.
    """
    file, content = checkpoint_files.read_latest_checkpoint(path, _SUFFIX, _read)
    with fitting(file):
        state = dict(torch.load(io.BytesIO(content), map_location=device, weights_only=True))
    check(state.pop("fingerprint", None))
    return state


def delete_checkpoints(directory: str | os.PathLike[str]) -> None:
    """Delete the checkpoints of a folder, such as those of an abandoned run, and the folder if nothing else is in it.

    Args:
        directory: folder; it need not be there.

    Example:
        >>> delete_checkpoints("a-folder-that-is-not-there")
    """
    checkpoint_files.delete_checkpoints(directory, _SUFFIX)


refuse_used = functools.partial(checkpoint_files.refuse_used, suffix=_SUFFIX)


def _read(file: BinaryIO) -> bytes:
    digest, content = file.read(32), file.read()
    if hashlib.sha256(content).digest() != digest:
        raise DamagedCheckpoint("Its digest does not match its content.")
    return content


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """State of PyTorch's generators, on the CPU and on the device."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Go back to a state from `get_rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
