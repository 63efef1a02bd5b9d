"""Inception features, by torch-fidelity, from a file of weights."""

import pathlib
from typing import Any

import numpy as np
from tqdm import trange

from gebm.extras import extra
from gebm.validation import integer

__all__ = ["inception_features"]

LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")


def inception_features(
    images: Any, weights_path: str, *, layer: str = "2048", batch_size: int = 64, progress_bar: bool = True
) -> np.ndarray:
    """Features of InceptionV3, those of the published FID and KID, by `torch-fidelity` (the extra `inception`).

    Nothing is fetched: `weights_path` is the file weights-inception-2015-12-05-6726825d.pth of the releases of
    https://github.com/toshas/torch-fidelity. PyTorch computes, in both hosts. Give the features to
    `metrics.frechet_distance` and `metrics.kernel_distance`. Source: arXiv:1706.08500.

    Args:
        images: shape `(N, 3, H, W)` or `(N, 1, H, W)`, in [-1, 1] or `uint8`.
        weights_path: file of the weights.
        layer: "64", "192", "768", "2048" (the usual one), "logits_unbiased" or "logits".
        batch_size: images at a time.
        progress_bar: whether to show one.

    Returns:
        Array of shape `(N, D)`, float32.

    Raises:
        ImportError: without torch-fidelity, naming the extra to install.
        FileNotFoundError: without the file of weights.
        ValueError: for images of another shape or range, or an unknown layer.
    """
    images, layer = _as_bytes(images), str(layer)
    if layer not in LAYERS:
        raise ValueError(f"Expected layer in {LAYERS}; got {layer!r}.")
    size = integer("batch_size", batch_size, minimum=1)
    if not pathlib.Path(weights_path).is_file():
        raise FileNotFoundError(
            f"Expected weights_path, a file of weights of InceptionV3; got {str(weights_path)!r}. Fetch "
            "weights-inception-2015-12-05-6726825d.pth from the releases of https://github.com/toshas/torch-fidelity."
        )
    inception = extra("torch_fidelity.feature_extractor_inceptionv3", "inception", "inception_features")
    torch = extra("torch", "inception", "inception_features")
    network = inception.FeatureExtractorInceptionV3("inception", [layer], feature_extractor_weights_path=weights_path)
    found = []
    for start in trange(0, len(images), size, desc="Inception", disable=not progress_bar):
        found.append(network(torch.as_tensor(images[start : start + size]))[0].numpy())
    return np.concatenate(found)


def _as_bytes(images):
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"Expected images of shape (N, 3, H, W) or (N, 1, H, W); got {images.shape}.")
    if images.dtype != np.uint8:
        if not (images.dtype.kind == "f" and np.isfinite(images).all() and np.abs(images).max() <= 1.001):
            raise ValueError("Expected images in [-1, 1] or uint8; got others. Scale them.")
        images = np.clip(np.rint(127.5 * images + 127.5), 0, 255).astype(np.uint8)
    return np.array(np.broadcast_to(images, (len(images), 3, *images.shape[2:])))
