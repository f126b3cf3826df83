"""`vestibule classify`, `verify`, `search`, `generate` and `denoise` against a service that runs."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
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
from app.cli.batch_client import in_order, sources
from app.cli.main import cli
from app.settings import PROJECT
from vestibule_client import Client

EXAMPLES = PROJECT / "examples"
COFFEE, CAT, DIGITS = (EXAMPLES / name for name in ("coffee.jpg", "cat.jpg", "digits.png"))
ASTRONAUT, HOPPER = EXAMPLES / "astronaut.jpg", EXAMPLES / "hopper.jpg"

# The command, and whether it imported torch.
WATCHED = """
import atexit, sys
import app.cli.main
atexit.register(lambda: print("torch" in sys.modules))
app.cli.main.main()
"""

Command = Callable[..., Any]  # the outcome: exit_code, stdout, stderr


@pytest.fixture(scope="module", autouse=True)
def _only_what_commands_print() -> Iterator[None]:
    """The service is in this process, and its log would go where the commands print."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def vestibule(live: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("VESTIBULE_URL", live)
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one in a folder of its own; a picture that is none; and what is passed over."""
    root = tmp_path / "photos"
    (root / "old" / ".thumbs").mkdir(parents=True)
    (root / "b-coffee.JPG").write_bytes(COFFEE.read_bytes())
    (root / "old" / "cat.jpg").write_bytes(CAT.read_bytes())
    (root / "old" / ".thumbs" / "cat.jpg").write_bytes(b"hidden")
    (root / "a-broken.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("no picture, and not called one")
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
    assert [one["file"] for one in (broken, coffee, cat, digits, again)] == [str(path) for path in paths]
    assert broken["problem"]["type"] == "urn:vestibule:problem:unsupported-image"
    assert [one["predictions"][0]["class"] for one in (coffee, cat, again)] == ["espresso", "Egyptian cat", "espresso"]
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


def test_of_very_many_skipped_files_the_first_are_named(vestibule: Command, tmp_path: Path) -> None:
    for number in range(103):
        (tmp_path / f"{number:03}.txt").write_bytes(b"")
    (tmp_path / ".hidden.txt").write_bytes(b"")
    told = vestibule("classify", tmp_path).stderr.splitlines()
    assert len(told) == 102
    assert told[-2:] == ["vestibule: skipped 3 more files", "vestibule: there is no picture in there"]


def test_characters_that_the_terminal_cannot_encode_are_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli.main", "classify", "--url", "http://127.0.0.1:9", str(tmp_path)]
    (tmp_path / "Zoë 日本.txt").write_bytes(b"")
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, check=False, env=environment, cwd=PROJECT, capture_output=True)
    assert done.returncode == 1
    told = done.stderr.decode("cp1252").splitlines()
    assert told[0].startswith(f"vestibule: skipped {tmp_path / 'Zoë ??.txt'}: ")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    script = "from app.cli.terminal import put, replace_unencodable; replace_unencodable(); put('Zoë 日本 x')"
    shown = subprocess.run(
        [sys.executable, "-c", script], check=True, env=environment, cwd=PROJECT, capture_output=True, text=True
    )
    assert shown.stdout == "Zo? ?? x\n"


def test_verify(vestibule: Command) -> None:
    same = vestibule("verify", ASTRONAUT, ASTRONAUT)
    assert (same.exit_code, same.stdout.splitlines()[0]) == (0, "one person")
    others = vestibule("verify", ASTRONAUT, HOPPER, "--fmr", 0.01)
    assert (others.exit_code, others.stdout.splitlines()[0]) == (0, "not one person, or not surely enough")
    assert "(false match rate 0.01)" in others.stdout
    (told,) = lines(vestibule("verify", "--json", ASTRONAUT, HOPPER, "--fmr", "1e-9").stdout)
    assert (told["verified"], told["operating_point"]["extrapolated"], told["source"]) == (False, True, str(ASTRONAUT))
    nobody = vestibule("verify", ASTRONAUT, COFFEE)
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("vestibule: There is no face in the picture")


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
    (told,) = lines(vestibule("search", "--json", "--collection", "cli", ASTRONAUT).stdout)
    assert told["faces"][0]["candidates"][0]["subject_id"] == "eileen"
    assert told["collection"]["name"] == "cli"
    missing = vestibule("search", "--collection", "nobody", ASTRONAUT, HOPPER)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert len(missing.stderr.splitlines()) == 1  # it would be said of every picture


def test_generate(vestibule: Command, live: str, tmp_path: Path) -> None:
    path = tmp_path / "year.png"
    arguments = ["generate", "-n", 4, "--seed", 1, "--label", "2,0,2,6", "--grid", 4, "-o", path]
    assert vestibule(*arguments).stdout == f"{path}  seed 1\n"
    assert path.read_bytes() == httpx.get(f"{live}/generate?n=4&seed=1&label=2,0,2,6&grid=4").content
    path.write_bytes(b"mine")
    again = vestibule(*arguments)
    assert (again.exit_code, "there already" in again.stderr, path.read_bytes()) == (1, True, b"mine")
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
        picture = file.resize((48, 32))
    for path in (photos / "cat.png", photos / "old" / "cat.png", photos / "cat.webp"):
        picture.save(path)
    done = vestibule("denoise", photos, "-o", clean)
    assert (done.exit_code, done.stderr) == (1, "vestibule: 1 of 3 failed\n")
    assert sorted(path.relative_to(clean) for path in clean.rglob("*.*")) == [Path("cat.png"), Path("old/cat.png")]
    assert f"{clean / 'cat.png'} is that of {photos / 'cat.png'}" in done.stdout
    again = vestibule("denoise", photos / "cat.png", "-o", clean)
    assert "there already; --force" in again.stdout
    replaced = vestibule("denoise", "--json", "--force", "--strength", 0, photos / "cat.png", "-o", clean)
    (told,) = lines(replaced.stdout)
    assert (told["output"], told["model"], "b64_json" in told) == (str(clean / "cat.png"), "denoiser-photo", False)
    with Image.open(clean / "cat.png") as file:
        assert (file.size, file.tobytes()) == (picture.size, picture.tobytes())


def test_where_nothing_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for arguments in (["classify", COFFEE, CAT], ["generate", "-o", tmp_path / "x.png"]):
        done = CliRunner().invoke(cli, [*map(str, arguments), "--url", url])
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"vestibule: no service responds at {url}")
        assert done.stderr.endswith("is it running? `vestibule serve`\n")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["classify", "--model", "nobody", COFFEE, CAT], "There is no such model"),
        (["classify", "EMPTY"], "there is no picture in there"),
        (["classify", "--url", "nowhere", COFFEE], "is not a URL"),
        (["verify", "missing.jpg", COFFEE], "missing.jpg: No such file or directory"),
    ],
)
def test_what_is_said_of_all_is_said_once(vestibule: Command, tmp_path: Path, arguments: list[Any], told: str) -> None:
    done = vestibule(*(tmp_path if one == "EMPTY" else one for one in arguments))
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list(sources([tmp_path], []))


def test_who_reads_no_further_is_no_error(vestibule: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(line: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(batch_client, "put", closed)
    assert vestibule("classify", COFFEE, CAT).stderr == ""


def test_so_many_are_asked_at_once_and_their_order_stays() -> None:
    under_way, most = 0, 0

    async def ask(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (5 - number % 5))
        under_way -= 1
        if number == 90:
            raise ValueError("enough")
        return 2 * number

    async def gather(numbers: range) -> list[tuple[int, int]]:
        return [pair async for pair in in_order(numbers, ask, 5)]

    assert asyncio.run(gather(range(50))) == [(number, 2 * number) for number in range(50)]
    assert most == 5
    with pytest.raises(ValueError, match="enough"):
        asyncio.run(gather(range(85, 100)))


def test_the_bar_is_for_people_and_torch_for_the_service(live: str) -> None:
    """As a process: its standard error a terminal, its standard output not."""
    command = [sys.executable, "-c", WATCHED, "classify", "--top-k", "1", str(COFFEE), str(CAT)]
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"VESTIBULE_URL": live},
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            check=True,
        )
        seen = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "2/2" in seen
    first, second, torch = done.stdout.splitlines()
    assert ("espresso" in first, "Egyptian cat" in second, torch) == (True, True, "False")
