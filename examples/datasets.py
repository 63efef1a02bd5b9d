"""Data of the examples."""

import gzip
import io
import os
import pathlib

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["cifar10", "digits", "fashion_mnist", "folder_of_images"]


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
    folder, parts = _folder(data, "fashion_mnist/*.gz") / "fashion_mnist", []
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        content = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
        parts.append(_scaled(values.reshape(-1, 784)) if "images" in name else values.astype(np.int64))
    return tuple(parts)


def cifar10(data=None):
    """Images and labels of CIFAR-10, from the folder `data` or the environment variable GEBM_DATA.

    Returns:
        As of `fashion_mnist`, in random order; images of shape `(N, 3, 32, 32)`.
    """
    folder, parts = _folder(data, "cifar10/*.npz") / "cifar10", []
    for name in ("train", "test"):
        with np.load(folder / f"cifar10_{name}_lossless.npz") as file:
            content, ends, labels = file["data"].tobytes(), file["offsets"], file["labels"].astype(np.int64)
        order = np.random.default_rng(0).permutation(len(labels))  # the files are sorted by class
        images = [_opened(io.BytesIO(content[ends[i] : ends[i + 1]])) for i in order]
        parts += [_scaled(np.stack(images).transpose(0, 3, 1, 2)), labels[order]]
    return tuple(parts)


def folder_of_images(folder, side=32):
    """Every image in a folder and below it, its middle square scaled to `side`; shuffled, a tenth of them held out.

    Returns:
        As of `cifar10`, without labels (None).
    """
    kinds = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
    paths = sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in kinds)
    if len(paths) < 20:
        raise SystemExit(
            f"Expected a folder with at least 20 images ({' '.join(kinds)}); got {len(paths)} in {folder}."
        )
    images = np.stack([_opened(paths[i], side) for i in np.random.default_rng(0).permutation(len(paths))])
    images, cut = _scaled(images.transpose(0, 3, 1, 2)), len(images) // 10
    return images[cut:], None, images[:cut], None


def _folder(data, needed):
    data = data or os.environ.get("GEBM_DATA")
    if data is None:
        raise SystemExit(f"Expected --data or GEBM_DATA, a folder with {needed} in it; got neither.")
    return pathlib.Path(data)


def _opened(file, side=None):
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image = image.convert("RGB")
        return np.asarray(image if side is None else ImageOps.fit(image, (side, side)))


def _scaled(values):
    return values.astype(np.float32) / 127.5 - 1.0
