"""Agreement between the processes of a training run, which may be on several nodes.

Only the main process reads and writes the run's folder; the others get what it read. They need the same folder
nevertheless: it has the decoded data, and another node may be the main one when the run is resumed.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list, gather_object  # type: ignore[import-untyped]

from training.core.errors import RunError

T = TypeVar("T")

# How long a new file may take to appear on another node.
APPEARS_S, POLL_S = 5.0, 0.1


def on_main(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """Return the result of `compute` in the main process, on all processes.

    Raises:
        RunError: on all processes, if `compute` raises it.
    """
    if accelerator.num_processes == 1:
        return compute()
    outcome: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [compute(), None]
        except RunError as error:
            outcome = [None, str(error)]
    result, problem = broadcast_object_list(outcome)
    if problem is not None:
        raise RunError(problem)
    return result  # type: ignore[no-any-return]


def require_agreement(accelerator: Accelerator, folder: Path, arguments: str) -> None:
    """Check that all processes see the same `folder` of runs, and were started with the same `arguments`.

    Raises:
        RunError: on all processes, if one of them sees another folder or has other arguments; or the main process
            cannot create a file in the folder.
    """
    if accelerator.num_processes == 1:
        return
    probe = folder / on_main(accelerator, lambda: _create_probe(folder))
    node = f"process {accelerator.process_index} on {platform.node()}"
    # Each process gets all reports, and so raises the same error.
    reports: list[tuple[str, str, bool, str]] = gather_object(
        [(node, str(folder.resolve()), _appears(probe), arguments)]
    )
    if accelerator.is_main_process:
        probe.unlink()
    main, path, _, expected = reports[0]
    for name, other, sees, given in reports:
        if not sees:
            raise RunError(
                f"VESTIBULE_RUNS: {name} does not see the files of {main}: {other} there is not {path} here; all nodes"
                " need the same folder"
            )
        if given != expected:
            raise RunError(f"{name} has another recipe or other options than {main}")


def _create_probe(folder: Path) -> str:
    """Create an empty file in `folder` and return its name, which no process has looked for before."""
    name = f".probe-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        raise RunError(f"VESTIBULE_RUNS: no file can be created in {folder}: {error.strerror}") from error
    return name


def _appears(path: Path) -> bool:
    """Wait until the file exists; return False if it does not within APPEARS_S seconds."""
    deadline = time.monotonic() + APPEARS_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
