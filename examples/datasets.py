"""Data of the examples."""

import gzip
import os
import pathlib

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["digits", "fashion_mnist"]


def digits(seed=0):
    """The 8x8 digits that ship with scikit-learn, pixels in [0, 1].

    Args:
        seed: of the split, 80 % for training and 20 % held out, each class in proportion.

    Returns:
        `(train_images, test_images, train_labels, test_labels)`; images of shape `(N, 8, 8)`, float32.
    """
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8)
    return train_test_split(images, labels, test_size=0.2, random_state=seed, stratify=labels)


def fashion_mnist(data=None):
    """Images and labels of Fashion-MNIST, from the folder `data` or the environment variable GEBM_DATA.

    Returns:
        `(train_images, train_labels, test_images, test_labels)`; images of shape `(N, 784)`, float32 in [-1, 1].
    """
    data = data or os.environ.get("GEBM_DATA")
    if data is None:
        raise SystemExit("Expected --data or GEBM_DATA, a folder with fashion_mnist/*.gz in it; got neither.")
    folder, parts = pathlib.Path(data) / "fashion_mnist", []
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        content = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
        if "images" in name:
            values = values.reshape(-1, 784).astype(np.float32) / 127.5 - 1.0
        parts.append(values.astype(np.int64) if "labels" in name else values)
    return tuple(parts)
