"""Run tasks in worker processes that compute the same numbers as a single process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

import torch

from training.core.errors import TrainingError

T = TypeVar("T")


def run_tasks(tasks: Sequence[Callable[[], T]], jobs: int) -> Iterator[T]:
    """Yield the results of the tasks as they complete.

    `jobs` worker processes run them, with one thread each; if 0, this process does, in order.

    Raises:
        TrainingError: a worker was killed.
    """
    if not jobs:
        yield from (task() for task in tasks)
        return
    # numpy reads these variables when it is imported: they affect the workers, not this process.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # Spawned, since a fork copies the locks of OpenMP's threads in their current state.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker) as pool:
        try:
            for future in as_completed([pool.submit(task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process was killed, perhaps for its memory; run the command again to continue"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Configure a worker process: one thread and deterministic algorithms, so that sums are rounded the same way."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True


def _exit_with_parent() -> None:
    # Otherwise the workers of a killed parent would wait forever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
