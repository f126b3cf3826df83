"""Training over two nodes: two `accelerate launch` on loopback, one process each (gloo)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from models import checkpoint
from tests.training.conftest import RECIPE, png, strokes, write_parquet
from training.core.run_folder import Run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A folder with a recipe and a data set, in which the nodes keep their runs."""
    pictures, labels = strokes(130)
    write_parquet(tmp_path / "data/strokes/train.parquet", [png(picture) for picture in pictures], labels)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def start(
    workshop: Path, runs: Sequence[str], *options: str, recipe: Path | None = None, module: str = "training.classify"
) -> list[subprocess.Popen[str]]:
    """Start one node for each name in `runs`, its folder of runs."""
    port = str(free_port())
    nodes = []
    for rank, name in enumerate(runs):
        launch = [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
        ]
        launch += ["--num_machines", str(len(runs)), "--num_processes", str(len(runs)), "--machine_rank", str(rank)]
        launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        environment = {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "VESTIBULE_DATASETS": str(workshop / "data"),
            "VESTIBULE_RUNS": str(workshop / name),
        }
        command = [sys.executable, *launch, "-m", module, str(recipe or workshop / "recipe.toml"), *options]
        nodes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return nodes


def finish(nodes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for the nodes and return what each wrote to standard error."""
    try:
        return [node.communicate(timeout=300)[1] for node in nodes]
    finally:
        kill(nodes)


def kill(nodes: list[subprocess.Popen[str]]) -> None:
    """Kill the nodes and their processes, each of which has a session of its own."""
    launchers = [psutil.Process(node.pid) for node in nodes if node.poll() is None]
    for process in [child for launcher in launchers for child in launcher.children(recursive=True)] + launchers:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for node in nodes:
        node.communicate()


def succeed(nodes: list[subprocess.Popen[str]]) -> None:
    errors = finish(nodes)
    assert [node.returncode for node in nodes] == [0, 0], errors


def refusals(nodes: list[subprocess.Popen[str]]) -> list[str]:
    """Return the one-line error of each node, all of which must fail."""
    errors = [re.findall(r"^error: .*$", text, re.MULTILINE) for text in finish(nodes)]
    assert all(node.returncode == 1 for node in nodes)
    assert [len(lines) for lines in errors] == [1, 1]
    return [lines[0] for lines in errors]


def test_a_killed_run_over_two_nodes_ends_with_the_same_weights(workshop: Path) -> None:
    options = ["--set", "train.epochs=12", "--set", "train.checkpoint_steps=1"]
    succeed(start(workshop, ["runs", "runs"], "--run", "unbroken", *options))

    run = Run(workshop / "runs/broken")
    nodes = start(workshop, ["runs", "runs"], "--run", "broken", *options)
    while not (run.folder / "last.pt").exists() or run.load_last(2)["progress"].step < 15:  # ten steps an epoch
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.02)
    kill(nodes)
    assert run.load_last(2)["progress"].step < 120
    succeed(start(workshop, ["runs", "runs"], "--run", "broken", *options, "--resume"))

    cards = [checkpoint.read_card(workshop / f"runs/{name}/export/strokes") for name in ("broken", "unbroken")]
    assert cards[0].sha256 == cards[1].sha256
    assert [card.training.processes for card in cards if card.training] == [2, 2]

    assert all("already holds a run" in line for line in refusals(start(workshop, ["runs", "runs"], "--run", "broken")))


def test_a_node_that_does_not_share_the_folder_of_runs_stops_the_run(workshop: Path) -> None:
    for line in refusals(start(workshop, ["runs", "elsewhere"])):
        assert "process 1" in line
        assert "does not see the files of process 0" in line
        assert str(workshop / "elsewhere") in line
    assert list((workshop / "runs").iterdir()) == []  # neither a run nor a probe


def test_generators_are_refused_with_the_reason(workshop: Path) -> None:
    recipe = ROOT / "training/recipes/wgan-mnist.toml"
    for line in refusals(start(workshop, ["runs", "runs"], recipe=recipe, module="training.gan")):
        assert "train in one process, not in 2" in line
        assert "gradients of gradients" in line
