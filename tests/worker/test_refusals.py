"""A worker that cannot start says so in one line that names the remedy, at once, and without a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pgqueue.errors import AppNotFound
from pgqueue.worker.loading import load_app
from tests.support import Databases
from tests.worker.harness import Rows, Worker

APPS = {
    "raises.py": "import pgqueue\napp = pgqueue.App()\n\nraise LookupError('no catalogue')\n",
    "imports.py": "import a_library_that_is_not_there\n",
    "exits.py": "import sys\nsys.exit(5)\n",
    "broken.py": "def app(:\n",
    "other.py": "import pgqueue\nqueue = pgqueue.App()\nnothing = 7\n",
}
PROTOCOL = """
    create or replace function pgqueue.protocol(out newest integer, out oldest integer)
    language sql immutable parallel safe return ({0}, {0})"""


@dataclass(frozen=True)
class Refusal:
    """A start that must fail: what is wrong, and what the line has to say."""

    name: str
    says: tuple[str, ...]
    code: int
    app: str = "other:queue"
    dsn: str = "good"


REFUSALS = [
    Refusal("nobody listens there", ("refused",), 1, dsn="postgresql://nobody@127.0.0.1:1/nothing"),
    Refusal("no such database", ("pgqueue_test_nowhere", "does not exist"), 1, dsn="nowhere"),
    Refusal("migration missing", ("pgqueue db upgrade",), 1, dsn="empty"),
    Refusal("schema too old", ("pgqueue db upgrade",), 1, dsn="older"),
    Refusal("schema too new", ("upgrade pgqueue-jobs",), 1, dsn="newer"),
    Refusal("no such module", ("not_there", "folder"), 2, app="not_there:app"),
    Refusal("app raises", ("LookupError", "no catalogue", "raises.py", "line 4"), 2, app="raises:app"),
    Refusal("app exits", ("SystemExit", "exits.py"), 2, app="exits:app"),
]
"""Real processes. What the command refuses before it starts a worker is `tests/test_cli.py`'s."""


@pytest.fixture(scope="module")
def ended(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """All of them, two at a time, each until it has ended by itself."""
    folder = tmp_path_factory.mktemp("refusals")
    for name, text in APPS.items():
        (folder / name).write_text(text)
    good = databases.create()
    dsns = {"good": good, "empty": databases.create_empty()}
    dsns["nowhere"] = good.replace(urlsplit(good).path, "/pgqueue_test_nowhere")
    for name, protocol in (("older", 0), ("newer", 1000)):
        dsn = dsns[name] = databases.create()
        with contextlib.closing(Rows(dsn)) as rows:
            rows.connection.execute(PROTOCOL.format(protocol))

    workers: dict[str, Worker] = {}

    def run(refusal: Refusal) -> None:
        dsn = dsns.get(refusal.dsn, refusal.dsn)
        worker = Worker(dsn, folder, "--processes", "2", app=refusal.app, cwd=folder)
        workers[refusal.name] = worker
        with contextlib.suppress(AssertionError):  # the test of that one will say so
            worker.wait(10)

    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(run, REFUSALS))
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()
        for dsn in dsns.values():
            databases.drop(dsn)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_a_start_that_cannot_succeed_ends_with_one_line_that_names_the_remedy(
    refusal: Refusal, ended: dict[str, Worker]
) -> None:
    worker = ended[refusal.name]

    assert worker.wait(0.1) == refusal.code, worker.told()
    (line,) = worker.noise
    assert line.startswith("error: ")
    for words in refusal.says:
        assert words in line
    assert [entry["event"] for entry in worker.log if entry["level"] != "info"] == []
    assert worker.ended_at is not None
    assert worker.ended_at - worker.started_at < 8


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("other:app", ("'app'", "it has queue")),
        ("other:nothing", ("int", "pgqueue.App")),
        ("other:queue.nothing", ("'nothing'",)),
        ("./other.py", ("module:attribute",)),
        ("", ("module:attribute",)),
        ("not_there.tasks:app", ("not_there", "folder")),
        ("imports:app", ("a_library_that_is_not_there", "imports.py", "line 1")),
        ("broken:app", ("SyntaxError", "broken.py")),
    ],
)
def test_an_app_path_that_leads_nowhere_says_where_it_ends(
    path: str, says: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in APPS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("sys.modules", dict(sys.modules))

    with pytest.raises(AppNotFound) as refused:
        load_app(path)
    message = str(refused.value)
    assert "\n" not in message
    for words in says:
        assert words in message
