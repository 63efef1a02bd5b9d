"""The devices of a mesh: what they divide between them, and what each of them has."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gebm.validation import instance, text

__all__ = ["Devices", "on_host", "own_rows", "placed_like", "wait"]

Tree = TypeVar("Tree")


class Devices:
    """The devices along an axis of a mesh, of one process or of many; without a mesh the one that there is.

    Args:
        mesh: a `jax.sharding.Mesh`, or None.
        axis: its axis along which rows (a batch, chains, particles) are divided.

    Attributes:
        mesh: the same devices, with axes along which the compiler divides the work; None without.
        size: how many devices divide the rows.
        num_processes: how many processes have these devices.
        rank: number of this process among them.

    Raises:
        TypeError: if it is no mesh.
        ValueError: if the mesh has no such axis, or no device of this process.

    Example:
        >>> devices = Devices(jax.make_mesh((1,), ("data",)))
        >>> devices.size, devices.rows(jnp.arange(4)).shape
        (1, (4,))
    """

    def __init__(self, mesh: Mesh | None, axis: str = "data") -> None:
        self.axis, self.mesh, self.size = text("axis", axis), None, 1
        self.num_processes, self.rank = 1, 0
        if mesh is None:
            return
        instance("mesh", mesh, Mesh, "jax.sharding.Mesh or None", 'Make one by `jax.make_mesh((n,), ("data",))`.')
        if axis not in mesh.axis_names:
            raise ValueError(f"Expected axis to be one of the mesh's, {mesh.axis_names}; got {axis!r}.")
        self.mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        self.size = mesh.shape[axis]
        processes = sorted({device.process_index for device in mesh.devices.flat})
        if jax.process_index() not in processes:
            raise ValueError(f"Expected a mesh with devices of process {jax.process_index()}; got one of {processes}.")
        self.num_processes, self.rank = len(processes), processes.index(jax.process_index())

    @classmethod
    def given(cls, mesh: Mesh | None, axis: str = "data") -> "Devices":
        """The same for an argument that several processes may not leave out: each would go its own way.

        Raises:
            ValueError: if it is None, and `jax.distributed` has several processes.
        """
        if mesh is None and jax.process_count() > 1:
            raise ValueError(
                f"Expected a mesh, as jax.distributed has {jax.process_count()} processes; got None. Pass "
                '`jax.make_mesh((jax.device_count(),), ("data",))`, or, for a run of this process alone, a mesh of '
                "`jax.local_devices()`."
            )
        return cls(mesh, axis)

    def check_divides(self, name: str, num: int) -> None:
        """Raise ValueError if a number of rows cannot be divided evenly."""
        if num % self.size:
            raise ValueError(
                f"Expected {name} to be a multiple of the {self.size} devices of the mesh's axis '{self.axis}'; got "
                f"{num}."
            )

    def rows(self, values: Tree) -> Tree:
        """Within a compiled program: arrays whose rows, along the first axis, the devices divide between them."""
        if self.mesh is None:
            return values
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axis))
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, sharding), values)

    def placed_rows(self, values: Tree) -> Tree:
        """The same for arrays that every process has."""
        return self._placed(values, PartitionSpec(self.axis))

    def everywhere(self, values: Tree) -> Tree:
        """Arrays that every process has, on every device."""
        return self._placed(values, PartitionSpec())

    def _placed(self, values, spec):
        if self.mesh is None:
            return values
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: _at(x, sharding), values)


def on_host(value: Any) -> np.ndarray:
    """An array on this host, of all processes if it is divided between several; each of them must call this.

    Random keys are given as their data.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = random.key_data(value)
    if isinstance(value, jax.Array) and not value.is_fully_addressable and not value.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    return np.asarray(value)


def wait() -> None:
    """Wait until every process has come so far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("gebm")


def own_rows(value: jax.Array, axis: int = 0, rows: slice | None = None) -> tuple[slice, np.ndarray]:
    """The part of an array that this process has along an axis, and where it is.

    Args:
        value: an array, whole or divided along that axis between processes.
        axis: that axis.
        rows: of an array that every process has whole, those to take; None takes all.

    Returns:
        `(rows, part)`.

    Raises:
        ValueError: if the part has gaps.
    """
    if not isinstance(value, jax.Array) or value.is_fully_addressable or value.is_fully_replicated:
        rows = slice(0, value.shape[axis]) if rows is None else rows
        return rows, np.asarray(value)[(slice(None),) * axis + (rows,)]
    parts = {shard.index[axis].start or 0: shard.data for shard in value.addressable_shards}
    starts = sorted(parts)
    ends = [start + parts[start].shape[axis] for start in starts]
    if starts[1:] != ends[:-1]:
        raise ValueError(f"Expected the rows of a process to be neighbours; got parts that begin at {starts}.")
    return slice(starts[0], ends[-1]), np.concatenate([np.asarray(parts[start]) for start in starts], axis)


def placed_like(values: Tree, like: Any) -> Tree:
    """Arrays that every process has where others are: on the same devices, and divided in the same way."""
    return jax.tree.map(lambda x, y: _at(x, y.sharding) if isinstance(y, jax.Array) else x, values, like)


def _at(x, sharding):
    """An array that every process has, with a sharding."""
    known = isinstance(x, jax.Array)
    if sharding.is_fully_addressable or (known and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if known and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return random.wrap_key_data(_at(random.key_data(x), sharding), impl=random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
