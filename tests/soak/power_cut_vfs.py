"""A disk that loses power: what is left of a folder when only what was synced is sure to be there.

SQLite's files are watched through an apsw VFS, all others through the functions of `os` that sync, name and delete. The
real files play the page cache: every read sees every write. What an fsync has confirmed is kept beside them, in memory,
and `Disk.write_survivors` makes the folder that is found when the power is back.

The disk is as forgetful as POSIX allows, which is more than common file systems are: of the writes since a file's last
fsync any may be there, by sectors and in any order, and a name is sure only when its folder was synced. A sync that was
confirmed is believed. The memory that SQLite's connections share (-shm) does not outlive the power.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512
# How SQLite's files are called in the kind of a step; all others are a "file".
_KINDS = {"-wal": "log", "-journal": "journal", ".db": "ledger"}
_SHARED_MEMORY = "-shm"


@dataclass(eq=False)
class _Node:
    """A file or a folder, under whatever name.

    `synced` is what the last fsync confirmed, `pending` what was done to it since, in order: an offset and the bytes
    written there, or a length it was cut to and None. `recorded`: the VFS tells of each write.
    """

    folder: bool = False
    recorded: bool = False
    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def content(self, kept: Callable[[], bool] = lambda: True) -> bytes:
        """What was synced, and each sector of each pending write for which `kept` says so."""
        content = bytearray(self.synced)
        for offset, data in self.pending:
            if data is None:
                if kept():
                    _resize(content, offset)
                continue
            start = 0
            while start < len(data):
                end = min(len(data), start + SECTOR - (offset + start) % SECTOR)
                if kept():
                    _resize(content, max(len(content), offset + start))
                    content[offset + start : offset + end] = data[start:end]
                start = end
        return bytes(content)


def _resize(content: bytearray, size: int) -> None:
    content[size:] = bytes(max(0, size - len(content)))


# One change of names as a whole (a rename is of two): what each stands for now, None where it is gone.
_Change = dict[Path, _Node | None]
Real = Callable[..., None]


class Disk:
    """What lies under `root`, an absolute path without links; its present contents count as synced.

    Before each step on the disk `before` is called with its kind, such as "sync log" or "rename file". Nothing else
    happens on the disk meanwhile.
    """

    def __init__(self, root: Path, before: Callable[[str], None] = lambda kind: None):
        self.root = root
        self._before = before
        self._lock = threading.RLock()
        self._synced: dict[Path, _Node] = {}
        for path in root.rglob("*"):
            self._synced[path] = _Node(folder=True) if path.is_dir() else _Node(synced=path.read_bytes())
        self._names = dict(self._synced)
        self._changes: list[_Change] = []

    @contextmanager
    def step(self, verb: str, path: Path) -> Iterator[None]:
        """Do something to the disk, alone."""
        if path.is_dir() or verb == "make":
            kind = "folder"
        else:
            kind = next((kind for end, kind in _KINDS.items() if path.name.endswith(end)), "file")
        with self._lock:
            self._before(f"{verb} {kind}")
            yield

    def recorded(self, path: Path) -> None:
        """The VFS has opened a file and tells of all writes to it from now on."""
        if path not in self._names:
            self._change({path: _Node()})
        self._names[path].recorded = True

    def written(self, path: Path, offset: int, data: bytes | None) -> None:
        """Bytes were written at `offset`; None: the file was cut there."""
        self._names[path].pending.append((offset, data))

    def synced(self, path: Path) -> None:
        """An fsync of the file has returned."""
        self._look(path)
        node = self._names[path]
        node.synced, node.pending = node.content(), []

    def synced_folder(self, folder: Path) -> None:
        """An fsync of the folder has returned: the names in it are sure."""
        self._look(folder)
        waiting, self._changes = self._changes, []
        for change in waiting:
            if next(iter(change)).parent == folder:
                _apply(change, self._synced)
            else:
                self._changes.append(change)

    def removed(self, path: Path) -> None:
        """A name was deleted."""
        self._change({path: None})

    def write_survivors(self, to: Path, rng: random.Random, share: float) -> int:
        """What is there when the power is back, in a new folder; the number of unsynced changes of names and contents.

        Each of them, a write sector by sector, is there with probability `share`.
        """
        with self._lock:
            for path in self.root.rglob("*"):
                self._look(path)
            names = dict(self._synced)
            for change in self._changes:
                if rng.random() < share:
                    _apply(change, names)
            folders = {self.root: to}
            to.mkdir()
            for path, node in sorted(names.items()):
                if path.parent not in folders:
                    continue  # nothing is found in a folder without a name
                target = folders[path.parent] / path.name
                if node.folder:
                    target.mkdir()
                    folders[path] = target
                else:
                    target.write_bytes(node.content(lambda: rng.random() < share))
            return len(self._changes) + sum(len(node.pending) for node in self._names.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the functions of `os` that index/embedded/store/atomic_files.py and pathlib call."""
        watched: dict[str, Callable[..., None]] = {
            "fsync": self._fsync,
            "replace": self._replace,
            "unlink": self._unlink,
            "mkdir": self._mkdir,
        }
        real = {name: getattr(os, name) for name in watched}
        for name, function in watched.items():
            setattr(os, name, partial(function, real[name]))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _fsync(self, real: Real, descriptor: int) -> None:
        wanted = os.fstat(descriptor)
        with self._lock:
            paths = (path for path in (self.root, *self.root.rglob("*")) if os.path.samestat(path.stat(), wanted))
            if (path := next(paths, None)) is None:
                real(descriptor)
                return
            with self.step("sync", path):
                (self.synced_folder if path.is_dir() else self.synced)(path)

    def _replace(self, real: Real, old: Path, new: Path) -> None:
        if not self._holds(old):
            real(old, new)
            return
        with self.step("rename", old):
            self._look(old)
            real(old, new)
            self._change({old: None, new: self._names[old]})

    def _unlink(self, real: Real, path: Path) -> None:
        if not self._holds(path):
            real(path)
            return
        with self.step("delete", path):
            self._look(path)
            real(path)
            self.removed(path)

    def _mkdir(self, real: Real, path: Path, mode: int = 0o777) -> None:
        if not path.is_relative_to(self.root) or path.exists() or not path.parent.exists():
            real(path, mode)
            return
        with self.step("make", path):
            real(path, mode)
            self._look(path)

    def _holds(self, path: Path) -> bool:
        return path.is_relative_to(self.root) and path.exists()

    def _look(self, path: Path) -> None:
        """Notice what was done to a file that nobody records, and files that are new."""
        if path.name.endswith(_SHARED_MEMORY) or not path.exists():
            return
        node = self._names.get(path)
        if node is None:
            node = _Node(folder=path.is_dir())
            self._change({path: node})
        if not node.folder and not node.recorded:
            seen = path.read_bytes()
            node.pending = [] if seen == node.synced else [(len(seen), None), (0, seen)]

    def _change(self, change: _Change) -> None:
        self._changes.append(change)
        _apply(change, self._names)


def _apply(change: _Change, names: dict[Path, _Node]) -> None:
    for path, node in change.items():
        if node is None:
            names.pop(path, None)
        else:
            names[path] = node


class PowerCutVFS(apsw.VFS):
    """The platform's own VFS, as which it is registered under `name`, told of to a disk."""

    def __init__(self, disk: Disk, name: str):
        super().__init__(name, "")
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """See `apsw.VFS`."""
        if name is None:
            return apsw.VFSFile("", None, flags)  # a temporary file: nobody looks for it when the power is back
        return _RecordedFile(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """See `apsw.VFS`."""
        path = Path(filename)
        with self._disk.step("delete", path):
            super().xDelete(filename, syncdir)
            self._disk.removed(path)
            if syncdir:
                self._disk.synced_folder(path.parent)


class _RecordedFile(apsw.VFSFile):
    """Each write goes to the file, too, and no sync does: that is the disk's."""

    def __init__(self, disk: Disk, name: str | apsw.URIFilename, flags: list[int]):
        self._disk = disk
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        with disk.step("open", self._path):
            # SQLite's own VFS syncs the folder at the first sync of a log or a journal that it has made.
            journal = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
            self._sync_folder = bool(flags[0] & journal) and not self._path.exists()
            super().__init__("", name, flags)
            disk.recorded(self._path)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        with self._disk.step("write", self._path):
            super().xWrite(data, offset)
            self._disk.written(self._path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._disk.step("cut", self._path):
            super().xTruncate(newsize)
            self._disk.written(self._path, newsize, None)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._disk.step("sync", self._path):
            self._disk.synced(self._path)
            if self._sync_folder:
                self._disk.synced_folder(self._path.parent)
                self._sync_folder = False
