"""The disk that the server's data are on is full, and freed after a while: a file system of its own, small and in memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded import EmbeddedServer
from tests.faults.conftest import scene_on
from tests.faults.scene import Scene
from tests.support import wait_until
from tests.support.own_server import databases_of

MEGABYTE = 1 << 20
SIZE = 224 * MEGABYTE
BACK = 2.0
"""Seconds after which work goes on when there is room again: workers try again at least every second."""
SETTINGS = {"min_wal_size": "32MB", "max_wal_size": "64MB", "wal_recycle": "off"}


class Disk:
    """A file system that a file can fill."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """No byte is left."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (MEGABYTE, 512):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:  # that was the last one
                    continue

    def free(self) -> None:
        """There is room again."""
        self._ballast.unlink()


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Mounted for the length of a test, where the server's user may go."""
    folder = tempfile.mkdtemp(prefix="pgqueue-tests-")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "pgqueue-tests", folder]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a full disk needs the right to mount one: {done.stderr.strip()}")
        try:
            yield Disk(Path(folder))
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    finally:
        os.rmdir(folder)


@pytest.fixture
def server(disk: Disk) -> Iterator[EmbeddedServer]:
    """A server with all that it has on that disk."""
    with EmbeddedServer(disk.folder / "server", settings=SETTINGS) as server:
        yield server


@pytest.fixture
def small_scene(server: EmbeddedServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene there."""
    (dsn,) = databases_of(server, 1)
    yield from scene_on(dsn, tmp_path, request)


@pytest.mark.fault("the disk is full, a real one: who needs a new page gets an error 53100")
def test_a_disk_without_room_for_data(disk: Disk, small_scene: Scene) -> None:
    scene = small_scene
    worker = scene.start(processes=2)
    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_ends(10)
            repeated = scene.record.repeated
            use_new_log_file(scene)  # it is the data that are to find no room
            disk.fill()
            wait_until(lambda: scene.record.repeated > repeated, 30, "a producer to be refused")  # noqa: B023
            time.sleep(1)  # the length of the fault, from when it hurts
            disk.free()
            scene.tried(scene.probe(), within=BACK)
    assert worker.events("worker.child_died") == []
    scene.check("raised", "refused")


def use_new_log_file(scene: Scene) -> None:
    """The server's log goes on in a new file, which takes all of its 16 MiB with the first commit."""
    scene.ask("select pg_switch_wal(), pg_logical_emit_message(true, 'a', 'message')")


def bring_back(server: EmbeddedServer, scene: Scene) -> None:
    """Waits until the server answers. One that has given up is started; one that hangs in its recovery (PostgreSQL 18 did,
    once in some thirty runs) is killed before that, as whoever operates it would."""

    def answers() -> bool:
        server.start()
        try:
            return scene.ask("select 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    try:
        wait_until(answers, 15, "the server to be back")
    except AssertionError:
        server.kill()
        wait_until(answers, 60, "the server to be back")


@pytest.mark.soak
@pytest.mark.fault(
    "the disk is full, a real one: the server cannot write its log, and ends in a PANIC (`make soak`)"
)
def test_a_disk_without_room_for_the_log(disk: Disk, server: EmbeddedServer, small_scene: Scene) -> None:
    scene = small_scene
    worker = scene.start(processes=2)
    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_ends(10)
            disk.fill()
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    use_new_log_file(scene)
            time.sleep(1)  # the length of the fault, from when it hurts
            disk.free()
            bring_back(server, scene)
            scene.tried(scene.probe(), within=BACK)
    assert worker.events("worker.child_died") == []
    scene.check("raised", "refused")
