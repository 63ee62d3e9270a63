"""One thread for small problems: a product of a few thousand numbers is done before a second one wakes.

Measured on two cores that other work kept busy, 400 rows x 4 features: choosing a penalty took 3.0 s
with two threads and 0.07 s with one, since every matrix product waits for the slower thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Numbers in the largest matrix. Above this a product takes milliseconds, and threads pay.
SMALL = 250_000


@contextmanager
def one_thread_if_small(n_numbers: int) -> Iterator[None]:
    """Run the block on one thread where its largest matrix holds at most `SMALL` numbers."""
    before = torch.get_num_threads()
    if before == 1 or n_numbers > SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
