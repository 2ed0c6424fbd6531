"""A Prometheus that scrapes what a test runs, and promtool: from Debian's package, where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.support.waiting import wait_until

_PATH = f"{os.environ.get('PATH', '')}:/usr/bin:/usr/local/bin"
BINARY = shutil.which("prometheus", path=_PATH)
"""Where it is installed; None: nowhere."""
PROMTOOL = shutil.which("promtool", path=_PATH)
MISSING = "Prometheus is not installed (Debian: apt-get install prometheus)"
"""The reason for skipping what needs them."""


class Prometheus:
    """Runs with this configuration, in a folder of its own."""

    def __init__(self, configuration: Mapping[str, Any]):
        self._configuration = configuration

    def __enter__(self) -> Self:
        assert BINARY is not None, MISSING
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.folder = Path(tempfile.mkdtemp(prefix="pgqueue-prometheus-"))
        file = self.folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(dict(self._configuration)))
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    BINARY,
                    f"--config.file={file}",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address={self._address}",
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._answers, 60, "Prometheus to be ready")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if error is not None:
            print((self.folder / "log").read_text()[-3000:])
        shutil.rmtree(self.folder)

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API, such as `api("targets")`."""
        with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """What an expression is now: its values by their labels."""
        found = self.api("query", query=expression)["result"]
        return {frozenset(sample["metric"].items()): float(sample["value"][1]) for sample in found}

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError("Prometheus has ended")
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False
