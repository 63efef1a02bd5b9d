"""Data of the examples."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["digits"]


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
