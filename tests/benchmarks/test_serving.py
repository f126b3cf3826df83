"""The pure parts of what serving is measured with: requests, load, models, comparisons, reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.serving import faults, load_generator, peers
from benchmarks.serving.agreement import Same, compared
from benchmarks.serving.bare_runtime import bare
from benchmarks.serving.fault_kinds import Figure, Memory, Trial, polite
from benchmarks.serving.faults import Row
from benchmarks.serving.load_generator import Load, Reply, parsed, script
from benchmarks.serving.models import calibrate
from benchmarks.serving.peers import Parts, Window, coffee, in_order, server_timing
from benchmarks.serving.report import faults_table, limit_table, run_tables, same_table
from benchmarks.serving.servers import HOST, KINDS, Request, ServerError
from benchmarks.serving.trivial_server import Trivial, length
from benchmarks.tables import merge, read
from models.registry import build


@asynccontextmanager
async def trivial() -> AsyncIterator[int]:
    """A server that computes nothing, on a free port."""
    server = await asyncio.get_running_loop().create_server(Trivial, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_requests_of_every_kind_hold_the_picture() -> None:
    picture = coffee(32)
    for kind in KINDS.values():
        request = kind.request(picture)
        head, _, body = request.encoded(80).partition(b"\r\n\r\n")
        assert length(head) == len(body) == len(request.body)
        assert body == picture or json.loads(body)


def test_every_peer_has_a_file() -> None:
    for kind in KINDS.values():
        assert kind.module is None or Path(f"benchmarks/serving/peer_servers/{kind.module}.py").is_file()


def test_clients_get_all_replies_in_order_and_open_no_more_lines_than_they_are() -> None:
    async def ask() -> tuple[list[Reply], list[Reply], list[Reply]]:
        async with trivial() as port:
            request = Request("/", {}, bytes(100_000)).encoded(port)
            return (
                await load_generator.at_once(port, [request] * 20),
                await load_generator.in_turn(port, [request] * 20, 3),
                await load_generator.open_loop(port, request, 200, 0.1),
            )

    for replies in asyncio.run(ask()):
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
            replies = await load_generator.open_loop(port, Request("/", {}, b"").encoded(port), 50, 0.4)
            assert asyncio.get_running_loop().time() - began < 1
            return replies

    replies = asyncio.run(ask())
    assert [(reply.status, reply.headers["retry-after"], reply.body) for reply in replies] == [(429, "1", b"no")] * 20


def test_nobody_there_is_a_reply_of_status_0() -> None:
    (reply,) = asyncio.run(load_generator.at_once(1, [b""]))
    assert reply.status == 0


def test_what_wrk_prints_is_read(tmp_path: Path) -> None:
    said = '{"requests": 100, "us": 2000000, "status": 3, "broken": 1, "p50": 1500.0, "p99": 9000.0}'
    load = parsed(f"Running\nresult {said}\n", 0.25)
    assert load == Load(100, 4, 2.0, 1.5, 9.0, 0.25)
    assert load.per_s == 48
    with pytest.raises(ValueError, match="unable to connect"):
        parsed("unable to connect", 0)
    assert 'wrk.headers["A"] = "b"' in script(Request("/", {"A": "b"}, b""), tmp_path / "body")


def test_a_calibrated_network_tells_pictures_apart() -> None:
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


def test_the_bare_runtime_is_counted_in_pictures() -> None:
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
    assert "| resnet64, mosec | 2 | 50.00% | 0.2900 | 0 |" in same_table([_texts(row)])


def test_the_order_of_a_round_is_by_lot_and_always_the_same() -> None:
    servers = list(KINDS)
    orders = [in_order(servers, "lenet", number) for number in range(5)]
    assert orders == [in_order(servers, "lenet", number) for number in range(5)]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == sorted(servers) for order in orders)


def test_server_timing_is_read() -> None:
    assert server_timing("decode;dur=1.50, queue;dur=0.25, total;dur=9.00") == {
        "decode": 1.5,
        "queue": 0.25,
        "total": 9,
    }


def test_memory_on_a_plateau_has_no_slope_whatever_it_grew_at_first() -> None:
    times = [float(second) for second in range(20)]
    assert Memory(times, [100.0 + min(second, 8) for second in times]).slope() == pytest.approx(0)
    assert Memory(times, [100.0 + second for second in times]).slope() == pytest.approx(60)
    assert [figure.value for figure in Memory([0.0, 1.0], [5.0, 6.0]).figures()][:2] == [5.0, 6.0]


def test_polite_is_200_or_429_with_a_time_to_come_again() -> None:
    told = Reply(429, 0.02, {"retry-after": "1"})
    replies = [*[Reply(200, i / 100, {}) for i in range(1, 101)], told, Reply(429, 0, {}), Reply(503, 0, {})]
    seen = {figure.measure: figure for figure in polite(replies)}
    assert seen["answered 200"].value == 100
    assert seen["answered 429 with Retry-After"].value == 1
    assert seen["answered anything else, or nothing"].value == 2
    assert seen["p99 of the 200s"].value == pytest.approx(1.0, abs=0.02)
    assert seen["median of the 429s"].value == 20


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
    page = faults_table(read(path))
    assert "| bad: good pictures lost, of 93 | 0 | 39 | 0 |" in page
    assert "- ours, bad: 3 x 400." in page


def test_the_page_is_written_from_the_files(tmp_path: Path) -> None:
    path = tmp_path / "serving.csv"
    about = Window("resnet64", "vestibule", 64, 1, settings="as it comes", versions="v 1", machine="a desk", failed=0)
    windows = [
        *(replace(about, round=i, per_s=per_s, p50_ms=5, p99_ms=9) for i, per_s in enumerate((100.0, 300, 200), 1)),
        replace(about, server="mosec", per_s=50, p50_ms=5, p99_ms=9, failed=2),
        replace(about, server="kserve", per_s=0, p50_ms=0, p99_ms=0),
        replace(about, server="ray", clients=0, round=0, status="ray ended by itself"),
    ]
    merge(path, windows, peers.KEY)
    page = run_tables(read(path))
    assert "| vestibule | 200 | 5.0 | 9.0 | 1.00 | 0 | 3 |" in page
    assert "| mosec | 50 | 5.0 | 9.0 | 4.00 | 2 | 1 |" in page
    assert "| kserve | 0 | 0.0 | 0.0 | - | 0 | 1 |" in page
    assert "**Not measured: ray ended by itself.**" in page
    loop = replace(about, case="resnet224", server="bare runtime", per_s=125, settings="in batches of 8")
    merge(tmp_path / "serving_limit.csv", [replace(about, case="resnet224", per_s=100), loop], peers.KEY)
    assert "| 1 | 100.0 | 125.0 | in batches of 8 | 0.800 |" in limit_table(read(tmp_path / "serving_limit.csv"))
    parts = Parts("resnet224", 64, 1, 300, 10, 0.2, 1, 5, 3.5, 0.1, 0.95, 0.9, "a desk", "today")
    merge(tmp_path / "serving_parts.csv", [parts], ("case", "clients", "round"))
    wrote = CliRunner().invoke(peers.cli, ["report", "--results", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert wrote.exit_code == 0, wrote.output
    with Image.open(tmp_path / "pictures" / "serving.png") as picture:
        assert picture.size[0] > 500
    written = (tmp_path / "page.md").read_text()
    assert page in written
    assert "| 64 | 10.00 | 0.20 | 1.00 | 5.00 | 3.50 | 0.10 | 95.0% | 90.0% | 1 |" in written


@pytest.mark.parametrize("asked", [["run", "--only", "oracle"], ["same", "--cases", "alexnet"]])
def test_what_is_not_known_is_refused(asked: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(peers.cli, [*asked, "--work", str(tmp_path)]).exit_code == 2


def _texts(row: object) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in vars(row).items()}
