"""`vestibule classify`, `verify`, `search`, `generate` and `denoise` against a running service."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from app.cli import batch_client
from app.cli.batch_client import find_images, map_in_order
from app.cli.main import cli
from app.settings import PROJECT
from vestibule_client import Client

EXAMPLES = PROJECT / "examples"
COFFEE, CAT, DIGITS = (EXAMPLES / name for name in ("coffee.jpg", "cat.jpg", "digits.png"))
ASTRONAUT, HOPPER = EXAMPLES / "astronaut.jpg", EXAMPLES / "hopper.jpg"

# Runs the command, then prints whether it imported torch.
REPORT_TORCH_IMPORT = """
import atexit, sys
import app.cli.main
atexit.register(lambda: print("torch" in sys.modules))
app.cli.main.main()
"""

Command = Callable[..., Any]  # returns a result with exit_code, stdout and stderr


@pytest.fixture(scope="module", autouse=True)
def _capture_service_logs() -> Iterator[None]:
    """The service runs in this process; keep its log out of the commands' output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def vestibule(live: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("VESTIBULE_URL", live)
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one in a subfolder; a file that is no image despite its suffix; and files to skip."""
    root = tmp_path / "photos"
    (root / "old" / ".thumbs").mkdir(parents=True)
    (root / "b-coffee.JPG").write_bytes(COFFEE.read_bytes())
    (root / "old" / "cat.jpg").write_bytes(CAT.read_bytes())
    (root / "old" / ".thumbs" / "cat.jpg").write_bytes(b"hidden")
    (root / "a-broken.png").write_bytes(b"no image")
    (root / "notes.txt").write_text("text")
    return root


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_classify_files_and_folders_in_order(vestibule: Command, folder: Path) -> None:
    done = vestibule("classify", "--json", "--top-k", 1, folder, DIGITS, COFFEE)
    skipped, failed = [line for line in done.stderr.splitlines() if line.startswith("vestibule: ")]
    assert skipped.startswith(f"vestibule: skipped {folder / 'notes.txt'}: its suffix is none of .bmp .gif ")
    assert (done.exit_code, failed) == (1, "vestibule: 1 of 5 failed")
    broken, coffee, cat, digits, again = lines(done.stdout)
    paths = folder / "a-broken.png", folder / "b-coffee.JPG", folder / "old" / "cat.jpg", DIGITS, COFFEE
    assert [record["file"] for record in (broken, coffee, cat, digits, again)] == [str(path) for path in paths]
    assert broken["problem"]["type"] == "urn:vestibule:problem:unsupported-image"
    classes = [record["predictions"][0]["class"] for record in (coffee, cat, again)]
    assert classes == ["espresso", "Egyptian cat", "espresso"]
    assert coffee["model"] == "efficientnet-lite0"


def test_classify_as_a_table(vestibule: Command, tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[31mred\n.jpg"
    odd.write_bytes(COFFEE.read_bytes())
    done = vestibule("classify", odd, tmp_path / "missing.jpg")
    shown, missing = done.stdout.splitlines()
    assert shown.startswith(str(tmp_path / "\ufffd[31mred\ufffd.jpg"))
    assert "  espresso 0.95" in shown
    assert missing == f"{tmp_path / 'missing.jpg'}  failed: No such file or directory"
    read = vestibule("classify", "--sequence", "--model", "lenet5-mnist", DIGITS)
    assert (read.exit_code, read.stdout.split()[1]) == (0, "64798")


def test_only_the_first_skipped_files_are_named(vestibule: Command, tmp_path: Path) -> None:
    for number in range(103):
        (tmp_path / f"{number:03}.txt").write_bytes(b"")
    (tmp_path / ".hidden.txt").write_bytes(b"")
    errors = vestibule("classify", tmp_path).stderr.splitlines()
    assert len(errors) == 102
    assert errors[-2:] == ["vestibule: skipped 3 more files", "vestibule: no images found in the given folders"]


def test_unencodable_characters_are_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli.main", "classify", "--url", "http://127.0.0.1:9", str(tmp_path)]
    (tmp_path / "Zoë 日本.txt").write_bytes(b"")
    done = subprocess.run(
        command, check=False, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, cwd=PROJECT, capture_output=True
    )
    assert done.returncode == 1
    errors = done.stderr.decode("cp1252").splitlines()
    assert errors[0].startswith(f"vestibule: skipped {tmp_path / 'Zoë ??.txt'}: ")
    script = "from app.cli.terminal import print_line, replace_unencodable as r; r(); print_line('Zoë 日本 x')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment, cwd=PROJECT) == b"Zo? ?? x\n"


def test_verify(vestibule: Command) -> None:
    same = vestibule("verify", ASTRONAUT, ASTRONAUT)
    assert (same.exit_code, same.stdout.splitlines()[0]) == (0, "same person")
    different = vestibule("verify", ASTRONAUT, HOPPER, "--fmr", 0.01)
    assert different.exit_code == 0
    assert different.stdout.splitlines()[0] == "different persons, or the match is too uncertain"
    assert "(false match rate 0.01)" in different.stdout
    (record,) = lines(vestibule("verify", "--json", ASTRONAUT, HOPPER, "--fmr", "1e-9").stdout)
    assert (record["verified"], record["operating_point"]["extrapolated"]) == (False, True)
    assert record["source"] == str(ASTRONAUT)
    no_face = vestibule("verify", ASTRONAUT, COFFEE)
    assert (no_face.exit_code, no_face.stdout) == (1, "")
    assert no_face.stderr.startswith("vestibule: There is no face in the")


def test_search(vestibule: Command, live: str) -> None:
    with Client(live) as client:
        client.create_collection("cli")
        client.enrol("cli", "eileen", ASTRONAUT)
    done = vestibule("search", "--collection", "cli", ASTRONAUT, HOPPER, COFFEE)
    assert [line.split()[1:3] for line in done.stdout.splitlines()] == [
        ["match", "eileen"],
        ["unknown", "eileen"],
        ["no", "face"],
    ]
    (record,) = lines(vestibule("search", "--json", "--collection", "cli", ASTRONAUT).stdout)
    assert record["faces"][0]["candidates"][0]["subject_id"] == "eileen"
    assert record["collection"]["name"] == "cli"
    missing = vestibule("search", "--collection", "nobody", ASTRONAUT, HOPPER)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert len(missing.stderr.splitlines()) == 1  # not once per image


def test_generate(vestibule: Command, live: str, tmp_path: Path) -> None:
    path = tmp_path / "year.png"
    arguments = ["generate", "-n", 4, "--seed", 1, "--label", "2,0,2,6", "--grid", 4, "-o", path]
    assert vestibule(*arguments).stdout == f"{path}  seed 1\n"
    assert path.read_bytes() == httpx.get(f"{live}/generate?n=4&seed=1&label=2,0,2,6&grid=4").content
    path.write_bytes(b"mine")
    again = vestibule(*arguments)
    assert (again.exit_code, "already exists" in again.stderr, path.read_bytes()) == (1, True, b"mine")
    assert lines(vestibule(*arguments, "--force", "--json").stdout) == [{"output": str(path), "seed": 1}]
    assert path.read_bytes() != b"mine"
    nowhere = vestibule("generate", "-o", tmp_path / "nowhere" / "x.png")
    assert (nowhere.exit_code, "No such file" in nowhere.stderr) == (1, True)
    assert vestibule("generate", "--label", "cat", "-o", tmp_path / "cat.png").stderr.startswith("vestibule: ")
    assert list(tmp_path.iterdir()) == [path]


def test_denoise(vestibule: Command, tmp_path: Path) -> None:
    photos, clean = tmp_path / "photos", tmp_path / "clean"
    (photos / "old").mkdir(parents=True)
    with Image.open(CAT) as file:
        image = file.resize((48, 32))
    for path in (photos / "cat.png", photos / "old" / "cat.png", photos / "cat.webp"):
        image.save(path)
    done = vestibule("denoise", photos, "-o", clean)
    assert (done.exit_code, done.stderr) == (1, "vestibule: 1 of 3 failed\n")
    assert sorted(path.relative_to(clean) for path in clean.rglob("*.*")) == [Path("cat.png"), Path("old/cat.png")]
    assert f"{clean / 'cat.png'} is already the output for {photos / 'cat.png'}" in done.stdout
    again = vestibule("denoise", photos / "cat.png", "-o", clean)
    assert "already exists; --force" in again.stdout
    replaced = vestibule("denoise", "--json", "--force", "--strength", 0, photos / "cat.png", "-o", clean)
    (record,) = lines(replaced.stdout)
    assert record["output"] == str(clean / "cat.png")
    assert (record["model"], "b64_json" in record) == ("denoiser-photo", False)
    with Image.open(clean / "cat.png") as file:
        assert (file.size, file.tobytes()) == (image.size, image.tobytes())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["classify", "--model", "nobody", COFFEE, CAT], "There is no such model"),
        (["classify", "EMPTY"], "no images found in the given folders"),
        (["classify", "--url", "nowhere", COFFEE], "is not a URL"),
        (["verify", "missing.jpg", COFFEE], "missing.jpg: No such file or directory"),
        (["classify", "--url", "UNUSED", COFFEE, CAT], "is it running? `vestibule serve`"),
        (["generate", "--url", "UNUSED", "-o", "x.png"], "is it running? `vestibule serve`"),
    ],
)
def test_common_errors_are_printed_once(vestibule: Command, tmp_path: Path, arguments: list[Any], error: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        values = {"EMPTY": tmp_path, "UNUSED": f"http://127.0.0.1:{closed.getsockname()[1]}"}
    done = vestibule(*(values.get(argument, argument) for argument in arguments))
    assert (done.exit_code, done.stdout) == (1, "")
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list(find_images([tmp_path], []))


def test_closed_output_pipe_is_not_reported(vestibule: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(line: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(batch_client, "print_line", closed)
    assert vestibule("classify", COFFEE, CAT).stderr == ""


def test_map_in_order_limits_concurrency_and_keeps_the_order() -> None:
    running, most = 0, 0

    async def double(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - number % 5))
        running -= 1
        if number == 90:
            raise ValueError("enough")
        return 2 * number

    async def gather(numbers: range) -> list[tuple[int, int]]:
        return [pair async for pair in map_in_order(numbers, double, 5)]

    assert asyncio.run(gather(range(50))) == [(number, 2 * number) for number in range(50)]
    assert most == 5
    with pytest.raises(ValueError, match="enough"):
        asyncio.run(gather(range(85, 100)))


def test_progress_bar_on_a_terminal_and_no_import_of_torch(live: str) -> None:
    command = [sys.executable, "-c", REPORT_TORCH_IMPORT, "classify", "--top-k", "1", str(COFFEE), str(CAT)]
    environment = os.environ | {"VESTIBULE_URL": live}
    reader, terminal = pty.openpty()
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True, check=True)
        bar = b""
        while select.select([reader], [], [], 0)[0]:  # a read returns at most 4 KiB
            bar += os.read(reader, 100_000)
    finally:
        os.close(reader)
        os.close(terminal)
    assert b"2/2" in bar
    first, second, torch = done.stdout.splitlines()
    assert ("espresso" in first, "Egyptian cat" in second, torch) == (True, True, "False")
