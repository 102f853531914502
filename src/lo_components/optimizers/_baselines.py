import optax

from ._optax import OptaxOptimizer


def Adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return OptaxOptimizer(optax.adam, learning_rate, b1=b1, b2=b2, eps=eps)


def SGD(learning_rate):
    return OptaxOptimizer(optax.sgd, learning_rate)
