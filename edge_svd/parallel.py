"""Work on many matrices at once: one a core, as LAPACK gains little from threads on matrices of a small model; and
reading ahead of the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`work` of every item, in order, as many at a time as torch had threads; each with one BLAS thread."""
    threads = torch.get_num_threads()
    try:
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)


def ahead(load: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`load` of every item, in order, each one loaded while its predecessor is worked on; on a stream of its own where
    there is a CUDA card, so that transfers and computations overlap."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(_apart, load, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _apart(load: Callable[[Item], Result], item: Item) -> Result:
    """What was loaded has arrived when this returns."""
    if not torch.cuda.is_available():
        return load(item)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = load(item)
    stream.synchronize()
    return found
