"""A server program of somebody else's that a test runs: in a folder of its own, on a port that is free."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
"""Where such programs are looked for: an account's own path often lacks the folders of daemons."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Program:
    """Runs `command` while a block lasts, which begins when `answers` says so.

    `folder` is its own, and removed at the end; its output is in `folder/log`, whose end is printed when the block failed.
    `unprivileged`: as root, it is run by another account, to which the folder is given.
    """

    def __init__(self, name: str, *, unprivileged: bool = False):
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"pgqueue-{name}-"))
        self._account = _account() if unprivileged and os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """What is run."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it is ready."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        if self._account is not None:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, self._account)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self.command(), user=self._account, cwd=self.folder, stdout=log, stderr=log
            )
        self._process = process

        def ready() -> bool:
            assert process.poll() is None, f"{self.name} has ended: {self.log()}"
            return self.answers()

        wait_until(ready, 60, f"{self.name} to be ready")

    def stop(self, signum: int = signal.SIGKILL) -> None:
        """Sends a signal that ends it, and waits for the end."""
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.wait(30)
            self._process = None

    def log(self) -> str:
        """The end of what it wrote."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            print(self.log())
        shutil.rmtree(self.folder)


def _account() -> str:
    """The account that runs what refuses to be root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)
