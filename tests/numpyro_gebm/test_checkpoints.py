"""Checkpoints of pytrees: leaves by their names, parts that may be missing, files of before leaves had names."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_gebm.training import checkpoints
from numpyro_gebm.training.checkpoints import read_latest_checkpoint, write_checkpoint


class Whole(NamedTuple):
    state: Any
    losses: Any
    best: Any = None


def whole(scale=1.0, **changes):
    state = {"w": scale * jnp.arange(3.0), "key": jax.random.key(7), "count": jnp.array(2, jnp.int32)}
    return Whole(**{"state": state, "losses": [scale * np.ones(5)]} | changes)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(new) is type(old) and new.dtype == old.dtype
        np.testing.assert_array_equal(*map(checkpoints._to_numpy, (new, old)))


def test_leaves_have_names(tmp_path):
    with np.load(write_checkpoint(tmp_path, 3, whole())) as file:
        assert set(file.files) == {
            "digest",
            "fingerprint",
            ".state['w']",
            ".state['key']",
            ".state['count']",
            ".losses[0]",
        }
    assert_same(read_latest_checkpoint(tmp_path, whole(0.0, losses=[np.zeros(0)])), whole())


def test_a_part_can_be_added_and_left_out(tmp_path):
    write_checkpoint(tmp_path, 0, whole())
    like = whole(0.0, best={"w": jnp.full(3, 9.0)})
    found = read_latest_checkpoint(tmp_path, like, optional=("best",))
    assert_same(found, whole(best=like.best))
    with pytest.raises(ValueError, match=r"does not fit: .best\['w'\] is missing. Resume with the same networks"):
        read_latest_checkpoint(tmp_path, like)
    write_checkpoint(tmp_path, 1, whole(best={"w": jnp.full(3, 4.0)}))
    assert_same(read_latest_checkpoint(tmp_path, like, optional=("best",)), whole(best={"w": jnp.full(3, 4.0)}))
    assert_same(read_latest_checkpoint(tmp_path, whole(0.0)), whole())
    assert_same(read_latest_checkpoint(tmp_path, whole(0.0, losses=None))._replace(losses=None), whole(losses=None))


def test_files_without_names_are_read_in_their_order(tmp_path):
    leaves = {f"leaf_{i:05d}": checkpoints._to_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(whole()))}
    with open(tmp_path / "step-000000000.npz", "wb") as file:
        np.savez(file, digest=np.array(checkpoints._digest(leaves)), **leaves)
    assert_same(read_latest_checkpoint(tmp_path, whole(0.0)), whole())
    like = whole(0.0, best={"w": jnp.full(3, 9.0)})
    assert_same(read_latest_checkpoint(tmp_path, like, optional=("best",)), whole(best=like.best))
    with pytest.raises(ValueError, match="does not fit"):
        read_latest_checkpoint(tmp_path, whole(losses=[np.ones(5), np.ones(2)]))


@pytest.mark.parametrize(
    "like, message",
    [
        (whole(state={"w": jnp.zeros(3)}), r".state\['count'\] is not expected; .state\['key'\] is not expected"),
        (whole(state={**whole().state, "v": jnp.zeros(3)}), r".state\['v'\] is missing"),
        (whole(state={**whole().state, "w": jnp.zeros(4)}), r".state\['w'\] has shape \(3,\), expected \(4,\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, like, message):
    write_checkpoint(tmp_path, 0, whole())
    with pytest.raises(ValueError, match=message):
        read_latest_checkpoint(tmp_path, like)
