"""Trained models that are shipped with the package: where their files are, and what is known of them."""

import dataclasses
import json
from importlib import resources
from typing import Any

import numpy as np

from gebm.array_file import read_arrays
from gebm.model_file import ModelFile
from gebm.validation import one_of

__all__ = ["PRETRAINED", "FeatureFile", "feature_file", "model_card", "model_file"]

#: Names of the models.
PRETRAINED = ("fashion_mnist", "cifar10")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureFile:
    """A feature network and what it makes of the test images.

    Args:
        description: class and configuration of a network of `nn`.
        arrays: of the network, by names like `features.convs.0.weight`, float32.
        reference: features of the test images, shape `(10000, 64)`, float32.
    """

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]
    reference: np.ndarray


def model_card(name: str) -> dict[str, Any]:
    """What is known of a model: data and their licence, the commands that made it, its numbers, hashes of its files.

    Args:
        name: one of `PRETRAINED`.

    Example:
        >>> model_card("fashion_mnist")["license"]
        'MIT'
    """
    return json.loads(_file(name, ".json").read_text())


def model_file(name: str) -> ModelFile:
    """The file of a GEBM; its arrays, stored in half precision, in float32.

    Args:
        name: one of `PRETRAINED`.
    """
    with resources.as_file(_file(name, ".npz")) as path:
        file = ModelFile.read(path)
    return dataclasses.replace(file, arrays={key: value.astype(np.float32) for key, value in file.arrays.items()})


def feature_file(name: str) -> FeatureFile:
    """The file of the features in which draws of a model are compared with data.

    Args:
        name: one of `PRETRAINED`.
    """
    with resources.as_file(_file(name, "_features.npz")) as path, open(path, "rb") as stream:
        arrays = read_arrays(stream)
    description = json.loads(str(arrays.pop("description")))
    arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
    return FeatureFile(description, reference=arrays.pop("reference"), arrays=arrays)


def _file(name, suffix):
    return resources.files("gebm") / "pretrained_files" / f"{one_of('name', name, PRETRAINED)}{suffix}"
