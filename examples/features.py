"""Features in which samples of digits are compared: the last hidden layer of a small classifier."""

import numpy as np
from sklearn.neural_network import MLPClassifier

__all__ = ["digit_features"]


def digit_features(images, labels):
    """Train a small classifier and return the map from images to its last hidden layer.

    Args:
        images: training images, shape `(N, ...)`.
        labels: their classes.

    Returns:
        A function from images to features of shape `(N, 64)`, with the attribute `classifier`.
    """
    classifier = MLPClassifier((128, 64), alpha=1e-3, max_iter=200, random_state=0)
    classifier.fit(images.reshape(len(images), -1), labels)

    def features(x):
        hidden = np.asarray(x, np.float64).reshape(len(x), -1)
        for weight, bias in list(zip(classifier.coefs_, classifier.intercepts_))[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        return hidden

    features.classifier = classifier
    return features
