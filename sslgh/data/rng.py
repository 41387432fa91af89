"""Random streams that are pure functions of what they are drawn for."""

import numpy as np

# The first word of every stream's key after the seed: no two purposes share a stream.
ORDER, VIEWS, WEAK, QUOTA, ROUND, LABELED, LOCAL, SUBSTITUTE = range(8)
# Epoch and repeat share a word of 64 bits.
REPEAT = 2**32


def rng_for(
    seed: int, purpose: int, epoch: int, index: int = 0, repeat: int = 0
) -> np.random.Generator:
    """Generator of one purpose, epoch and image; ``repeat``: how often the epoch has shown the image before.

    Philox is counter-based: streams whose counters differ in the upper words cannot overlap, and
    neither the number of workers nor a resumed run can change what an image gets.
    """
    counter = [0, 0, epoch + REPEAT * repeat, index]
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))
