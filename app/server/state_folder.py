"""The state folder: private to the user who runs the service, and checked for write access before models load."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from app.settings import ConfigurationError
from index.folders import make_folder

PRIVATE_UMASK = 0o077
OTHERS = 0o077  # permission bits of the group and of other users


def prepare(folder: Path, *, create: bool = True) -> str | None:
    """Create the folder if it is missing, check that files can be created in it, and set this process's umask to 077.

    So every file that the process creates from now on can be read by its user alone. Child processes inherit that. With
    `create=False` a missing folder is not created.

    Returns:
        A warning if other users may read an existing folder; else None.

    Raises:
        ConfigurationError: no file can be created in the folder.
    """
    os.umask(PRIVATE_UMASK)
    if not create and not folder.exists():
        return None
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
        mode = folder.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigurationError(
            f"VESTIBULE_STATE: no file can be created in {folder.absolute()}: {error.strerror}"
        ) from error
    if mode & OTHERS:
        return f"other users may read {folder.absolute()} (mode {mode:04o}); chmod -R go-rwx it"
    return None
