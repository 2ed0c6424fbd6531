"""A Prometheus that scrapes what a test runs, and promtool: from Debian's package, where it is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.support.program import PATH, Program, free_port

BINARY = shutil.which("prometheus", path=PATH)
"""Where it is installed; None: nowhere."""
PROMTOOL = shutil.which("promtool", path=PATH)
MISSING = "Prometheus is not installed (Debian: apt-get install prometheus)"
"""The reason for skipping what needs them."""


class Prometheus(Program):
    """Runs with this configuration."""

    def __init__(self, configuration: Mapping[str, Any]):
        super().__init__("prometheus")
        self._address = f"127.0.0.1:{free_port()}"
        self._file = self.folder / "prometheus.yml"
        self._file.write_text(yaml.safe_dump(dict(configuration)))

    def command(self) -> Sequence[str]:
        assert BINARY is not None, MISSING
        return [
            BINARY,
            f"--config.file={self._file}",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address={self._address}",
        ]

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API, such as `api("targets")`."""
        with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """What an expression is now: its values by their labels."""
        found = self.api("query", query=expression)["result"]
        return {frozenset(sample["metric"].items()): float(sample["value"][1]) for sample in found}

    def answers(self) -> bool:
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False
