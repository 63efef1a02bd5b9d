r"""The 3x3 convolution of the architectures, as a primitive whose derivatives are convolutions of the same form.

XLA on CPU has fast code for one order of the axes, "NHWC" times "HWIO". Outside loops it brings every convolution into
this form; within the body of a loop it does not (https://github.com/jax-ml/jax/issues/12868), and JAX's own
derivatives, which swap the axes of the kernel, take ten times as long there. With x of shape $(N, H, W, C)$, w of shape
$(3, 3, C, C')$ and $w^\circ$ the kernel turned by 180° with its channels swapped,

.. math::
    y = x * w, \qquad
    \bar x = \bar y * w^\circ, \qquad
    \bar w_{ij} = \sum_{n, a, b} x_{n, a+i, b+j}\, \bar y_{n, a, b}^\top,

and the last is bilinear in $x$ and $\bar y$ with derivatives of the first two forms: two primitives are closed under
differentiation of any order, in both modes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["conv3x3"]


def conv3x3(x: jax.Array, weight: jax.Array) -> jax.Array:
    """3x3 convolution with padding 1 of one image.

    Args:
        x: shape `(C, H, W)`.
        weight: shape `(C', C, 3, 3)`.

    Returns:
        Shape `(C', H, W)`.

    Example:
        >>> conv3x3(jnp.ones((1, 4, 4)), jnp.ones((1, 1, 3, 3)))[0, :2, :2].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    dtype = jnp.result_type(x, weight)
    images, kernel = jnp.moveaxis(x, 0, -1)[None].astype(dtype), jnp.transpose(weight, (2, 3, 1, 0)).astype(dtype)
    return jnp.moveaxis(_convolution.bind(images, kernel)[0], -1, 0)


def _convolve(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _correlate(x, g):
    """Derivative by the kernel: a convolution over images and places, from C to C' channels."""
    return jnp.transpose(_convolve(jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3))), (1, 2, 0, 3))


def _turned(w):
    return jnp.swapaxes(w[::-1, ::-1], 2, 3)


def _batched_convolution(args, axes):
    x, w = args
    if axes[1] is not None:  # a kernel for each
        return jax.vmap(_convolve, axes)(x, w), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = _convolution.bind(x.reshape(-1, *x.shape[2:]), w)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _primitive(name, fn, shape):
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(fn))
    primitive.def_abstract_eval(lambda a, b: ShapedArray(shape(a.shape, b.shape), a.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(fn, multiple_results=False))
    return primitive


_convolution = _primitive("convolution_3x3", _convolve, lambda x, w: (*x[:3], w[3]))
_correlation = _primitive("correlation_3x3", _correlate, lambda x, g: (3, 3, x[3], g[3]))
ad.defbilinear(_convolution, lambda g, x, w: _convolution.bind(g, _turned(w)), lambda g, x, w: _correlation.bind(x, g))
ad.defbilinear(_correlation, lambda c, x, g: _convolution.bind(g, _turned(c)), lambda c, x, g: _convolution.bind(x, c))
batching.primitive_batchers[_convolution] = _batched_convolution
batching.primitive_batchers[_correlation] = lambda args, axes: (jax.vmap(_correlate, axes)(*args), 0)
