"""Checkpoints of a training run: written atomically, read back from the newest that is whole."""

import hashlib
import io
import math
import os
import pathlib
import re
import warnings

import torch

__all__ = [
    "Checkpoints",
    "delete_checkpoints",
    "get_rng_state",
    "read_latest_checkpoint",
    "set_rng_state",
    "write_checkpoint",
]

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

    def write_if_due(self, step, make_state):
        """Write one at the start, and where `every` divides the step."""
        if self.written is None or (self.every is not None and step % self.every == 0):
            self.write(step, make_state)

    def write(self, step, make_state):
        """Write one now."""
        if self.directory is not None:
            write_checkpoint(self.directory, step, make_state())
        self.written = step


def write_checkpoint(directory, step, state):
    """Write a state dictionary to `directory/step-<step>.pt` and keep the newest few.

    Args:
        directory: folder, made if it is not there.
        step: number that orders the checkpoints.
        state: nested dictionaries of tensors and numbers.

    Returns:
        The path written.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:09d}.pt"
    temporary = path.with_suffix(".tmp")
    content = io.BytesIO()
    torch.save(state, content)
    content = content.getvalue()
    with open(temporary, "wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in _checkpoints(directory)[KEEP:]:
        old.unlink()
    return path


def read_latest_checkpoint(path, device):
    """Read the newest checkpoint that is whole; damaged ones are passed over with a warning.

    Args:
        path: a folder of checkpoints, or one checkpoint.
        device: where its tensors go.

    Returns:
        The state dictionary.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if every checkpoint is damaged.
    """
    path = pathlib.Path(path)
    candidates = _checkpoints(path) if path.is_dir() else [path]
    if not candidates or not candidates[0].exists():
        raise FileNotFoundError(f"Expected checkpoints (step-*.pt) at {path}; found none.")
    for candidate in candidates:
        content = candidate.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return torch.load(io.BytesIO(content[32:]), map_location=device, weights_only=True)
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
    return sorted((p for p in directory.iterdir() if re.fullmatch(r"step-\d+\.pt", p.name)), reverse=True)


def get_rng_state(device):
    """State of PyTorch's generators, on the CPU and on the device."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state, device):
    """Go back to a state from `get_rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
