"""A release to come: 0.2.0, made of this one, whose revision 0002 does what revisions do.

It changes the tables that are used most, replaces a function's body, lets the signature of another grow, makes one that is new,
and serves a protocol more. Its package speaks that protocol, and sends the argument that has grown.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgqueue import migrate
from pgqueue.migrate import revisions

REPOSITORY = Path(__file__).resolve().parents[2]
_ONE_AT_A_TIME = """\
lock table pgqueue.ready_jobs in access exclusive mode;
set local lock_timeout = '300ms';
lock table pgqueue.running_jobs, pgqueue.finished_jobs in access exclusive mode;"""
"""As migrations/README.md asks for: what waits for us while we hold a table must not wait for a second, or it looks for a deadlock."""


class LaterRelease:
    """The tree of the release to come: `root`, with `pgqueue/`, `sql/` and `migrations/`; `statements`: what 0002 does."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("pgqueue", "sql", "migrations"):
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        assert freeze(root) == 0
        assert freeze(root, "--release") == 0
        shutil.copytree(root / "migrations", root / "before")
        assert freeze(root, "--new", "later") == 0
        self._change = root / "migrations" / "versions" / "0002_later.sql"
        self.statements = self._statements()
        self.write(self.statements)
        _rewrite(root / "pgqueue/version.py", '"0.1.0"', '"0.2.0"')
        _rewrite(root / "pgqueue/version.py", "PROTOCOL = 1", "PROTOCOL = 2")
        producer = root / "pgqueue/calls/producer.py"
        _rewrite(
            producer,
            '        ("options", "jsonb"),\n',
            '        ("options", "jsonb"),\n        ("later", "integer"),\n',
        )
        _rewrite(producer, "        options,\n    )\n", '        options,\n        "2",\n    )\n')

    def write(self, statements: list[str]) -> None:
        """Makes 0002 of other statements."""
        self._change.write_text("\n".join(statements) + "\n")

    @contextmanager
    def known(self, *, before: bool = False) -> Iterator[None]:
        """For the length of a block this process has the migrations of that release; `before`: without its own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(revisions, "root", lambda: self.root / ("before" if before else "migrations"))
            yield

    def install_before(self, dsn: str) -> None:
        """Brings an empty database to 0001."""
        with self.known(before=True):
            assert migrate.upgrade(dsn) == ("0001",)

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command of that release's own package."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", "from pgqueue.cli import main; main()", *arguments],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _statements(self) -> list[str]:
        functions = self.root / "sql/2_functions"
        complete = (functions / "worker/complete.sql").read_text()
        enqueue = (functions / "producer/enqueue.sql").read_text().partition("comment on function")[0]
        grown = enqueue.replace("out id          bigint,", "later integer default null, out id bigint,")
        counted = complete.replace("\nbegin\n", "\nbegin\n    perform nextval('pgqueue.later_calls');\n")
        assert "later" in grown
        assert "later" in counted
        return [
            *_ONE_AT_A_TIME.splitlines(),
            "alter table pgqueue.ready_jobs add column later integer;",
            "alter table pgqueue.running_jobs add column later integer;",
            "alter table pgqueue.finished_jobs add column later integer default 2;",
            "create sequence pgqueue.later_calls;",
            "create function pgqueue.later() returns integer language sql return 2;",
            counted.replace("create function", "create or replace function", 1),
            "alter function pgqueue.enqueue rename to enqueue_until_0002;",
            grown,
            "create or replace function pgqueue.protocol(out newest integer, out oldest integer)"
            " language sql immutable parallel safe return (2, 1);",
        ]


def freeze(root: Path, *arguments: str) -> int:
    """Runs the freeze script of the tree at `root`; returns its exit code."""
    spec = importlib.util.spec_from_file_location("freeze", root / "migrations" / "freeze.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    code: int = script.main(list(arguments))
    return code


def _rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: {old!r} is there {text.count(old)} times"
    path.write_text(text.replace(old, new))
