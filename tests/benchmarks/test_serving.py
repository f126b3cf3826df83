"""Serving side by side, without servers: requests, the load generator, models, comparisons, faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import uvloop

from benchmarks.serving import commits, faults, load_generator, peers
from benchmarks.serving.agreement import Same, compared
from benchmarks.serving.bare_runtime import bare
from benchmarks.serving.fault_kinds import Figure, Memory, Trial, polite
from benchmarks.serving.faults import Row
from benchmarks.serving.load_generator import Load, Reply, parsed, script
from benchmarks.serving.models import calibrate
from benchmarks.serving.open_loop import open_loop
from benchmarks.serving.peers import coffee
from benchmarks.serving.servers import HOST, KINDS, Request, ServerError
from benchmarks.serving.trivial_server import Trivial, length
from benchmarks.tables import read
from models.registry import build
from tests.benchmarks.conftest import invoke


@asynccontextmanager
async def trivial() -> AsyncIterator[int]:
    """A server that computes nothing, on a free port."""
    server = await asyncio.get_running_loop().create_server(Trivial, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_every_kind_of_server_has_a_file_and_requests_with_the_image() -> None:
    image = coffee(32)
    for kind in KINDS.values():
        assert kind.module is None or Path(f"benchmarks/serving/peer_servers/{kind.module}.py").is_file()
        head, _, body = kind.request(image).encoded(80).partition(b"\r\n\r\n")
        assert length(head) == len(body)
        assert body == image or json.loads(body)


def test_every_client_gets_its_replies() -> None:
    async def ask() -> tuple[list[Reply], list[Reply], list[Reply]]:
        async with trivial() as port:
            request = Request("/", {}, bytes(100_000)).encoded(port)
            return (
                await load_generator.at_once(port, [request] * 20),
                await load_generator.in_turn(port, [request] * 20, 3),
                await open_loop(port, request, 200, 0.1),
            )

    for replies in uvloop.run(ask()):
        assert len(replies) == 20
        assert {(reply.status, reply.body) for reply in replies} == {(200, b"[]")}


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def ask() -> list[Reply]:
        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.2)
            writer.write(
                b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
            )
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(late, HOST, 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            began = asyncio.get_running_loop().time()
            replies = await open_loop(port, Request("/", {}, b"").encoded(port), 50, 0.4)
            assert asyncio.get_running_loop().time() - began < 1
            return replies

    replies = uvloop.run(ask())
    assert [(reply.status, reply.headers["retry-after"], reply.body) for reply in replies] == [(429, "1", b"no")] * 20


@pytest.mark.parametrize(("answers", "status"), [(1, 200), (0, 0)])
def test_a_request_on_a_kept_connection_that_the_server_closes_is_sent_once_more(answers: int, status: int) -> None:
    requests: list[int] = []  # of each connection

    async def close_without_a_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(answers + 1):
            await reader.readuntil(b"\r\n\r\n")
            if number < answers:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        requests.append(number + 1)
        writer.close()

    async def ask() -> list[Reply]:
        server = await asyncio.start_server(close_without_a_word, HOST, 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await open_loop(port, Request("/", {}, b"").encoded(port), 20, 1.0)

    assert [reply.status for reply in uvloop.run(ask())] == [status] * 20
    assert set(requests) == {answers + 1}


def test_the_output_of_wrk_is_parsed(tmp_path: Path) -> None:
    said = '{"requests": 100, "us": 2000000, "status": 3, "broken": 1, "p50": 1500.0, "p99": 9000.0}'
    load = parsed(f"Running\nresult {said}\n", 0.25)
    assert load == Load(100, 4, 2.0, 1.5, 9.0, 0.25)
    assert load.per_s == 48
    with pytest.raises(ValueError, match="unable to connect"):
        parsed("unable to connect", 0)
    assert 'wrk.headers["A"] = "b"' in script(Request("/", {"A": "b"}, b""), tmp_path / "body")


def test_commits_are_compared_round_by_round() -> None:
    text = commits.report("lenet", 64, ["old", "new"], [[100, 200, 50], [110, 190, 100]])
    assert text.splitlines() == [
        "lenet c=64 old: 100.0/s, ratio 1.000 (100 200 50)",
        "lenet c=64 new: 110.0/s, ratio 1.100 (110 190 100)",
    ]
    multipart = commits.request(b"image", multipart=True)
    assert multipart.body.count(commits.BOUNDARY.encode()) == 2
    assert b"\r\n\r\nimage\r\n" in multipart.body


def test_a_calibrated_network_distinguishes_images() -> None:
    torch.manual_seed(0)
    module = build("resnet20", {"num_classes": 3})
    labels = torch.arange(60) % 3
    images = torch.rand(60, 3, 16, 16) + labels[:, None, None, None] * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    calibrate(module, images, labels)
    assert not module.training
    with torch.inference_mode():
        logits = module(images)
    assert logits.std() == pytest.approx(2.0, rel=0.05)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.6


def test_the_bare_runtime_is_counted_in_images() -> None:
    sizes: list[int] = []
    batch, per_s = bare(lambda pictures: sizes.append(len(pictures)) or pictures, 4, 0.06)  # type: ignore[func-returns-value]
    assert set(sizes) == {1, 2, 4, 8, 16, 32}
    assert batch in sizes
    assert per_s > 0


def test_answers_are_compared_with_those_of_torch() -> None:
    wanted = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    right = json.dumps([{"class_id": 0, "confidence": 0.69}, {"class_id": 1, "confidence": 0.31}]).encode()
    replies = [Reply(200, 0, {}, right), Reply(200, 0, {}, right)]
    row = compared(Same("resnet64", "mosec", 2), KINDS["mosec"], replies, wanted)
    assert (row.failed, row.same_top1) == (0, 0.5)
    assert row.furthest == pytest.approx(0.29)
    assert not row.good
    assert compared(row, KINDS["mosec"], replies[:1], wanted[:1]).good
    lost = compared(row, KINDS["mosec"], [replies[0], Reply(500, 0, {})], wanted)
    assert (lost.failed, lost.good) == (1, False)


def test_the_slope_of_memory_ignores_its_first_growth() -> None:
    times = [float(second) for second in range(20)]
    assert Memory(times, [100.0 + min(second, 8) for second in times]).slope() == pytest.approx(0)
    assert Memory(times, [100.0 + second for second in times]).slope() == pytest.approx(60)
    assert [figure.value for figure in Memory([0.0, 1.0], [5.0, 6.0]).figures()][:2] == [5.0, 6.0]
    growing = Memory(times, [100.0 + second for second in times])
    assert [figure.value for figure in growing.figures()][-1] == pytest.approx(100 * 9 / 110)


def test_overload_answers_are_counted() -> None:
    told = Reply(429, 0.02, {"retry-after": "1"})
    replies = [*[Reply(200, i / 100, {}) for i in range(1, 101)], told, Reply(429, 0.03, {}), Reply(503, 0.01, {})]
    seen = {figure.measure: figure for figure in polite(replies)}
    assert seen["answered 200"].value == 100
    assert seen["answered 429 with Retry-After"].value == 1
    assert seen["answered anything else, or nothing"].value == 2
    assert seen["p99 of the 200s"].value == pytest.approx(1.0, abs=0.02)
    assert seen["median of the refusals (429, 503)"].value == 20


def test_a_fault_that_cannot_be_measured_has_a_row_that_says_why(tmp_path: Path) -> None:
    def fails(trial: Trial) -> list[Figure]:
        raise ServerError("it ended")

    def works(trial: Trial) -> list[Figure]:
        return [Figure("good pictures lost, of 93", 0, wanted="0"), Figure("answer", 400, note="3 x 400")]

    trial, about = (
        Trial(lambda _: pytest.fail("no server is needed"), b"", 1, 1),
        Row("ours", "", "", None, date="today"),
    )
    path = tmp_path / "faults.csv"
    faults.put(path, "ours", "bad", faults.of(about, "bad", trial, fails))
    assert [row["note"] for row in read(path)] == ["it ended"]
    faults.put(
        path,
        "mosec",
        "bad",
        [replace(about, server="mosec", fault="bad", measure="good pictures lost, of 93", value=39, wanted="0")],
    )
    faults.put(path, "ours", "bad", faults.of(about, "bad", trial, works))
    assert [(row["server"], row["value"]) for row in read(path)] == [("mosec", "39"), ("ours", "0"), ("ours", "400")]


@pytest.mark.parametrize("asked", [["run", "--only", "oracle"], ["same", "--cases", "alexnet"]])
def test_unknown_servers_and_cases_are_refused(asked: list[str], tmp_path: Path) -> None:
    assert invoke(peers.cli, *asked, "--work", tmp_path).exit_code == 2
