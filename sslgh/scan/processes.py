"""Many items through one function on several processes, of which some may die."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Enough that sending is cheap compared to decoding, few enough to keep all processes busy.
CHUNK = 16


def map_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    crashed: Callable[[Item], Result],
    workers: int,
) -> Iterator[Result]:
    """What a function returns for each item, in order, computed on other processes.

    Args:
        function: A module-level function, so that it can be pickled.
        items: Arguments, one per call.
        crashed: The result for an item that ends the process it is given to (a crash in a decoder, or the
            kernel when memory is short).
        workers: Number of processes.
    """
    done = 0
    while done < len(items):
        try:
            with ProcessPoolExecutor(min(workers, len(items) - done)) as pool:
                for result in pool.map(function, items[done:], chunksize=CHUNK):
                    yield result
                    done += 1
        except BrokenProcessPool:
            # Unknown which item it was, but it lies shortly ahead: run the next one alone.
            yield _alone(function, items[done], crashed)
            done += 1


def _alone(
    function: Callable[[Item], Result], item: Item, crashed: Callable[[Item], Result]
) -> Result:
    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(function, item).result()
    except BrokenProcessPool:
        return crashed(item)
