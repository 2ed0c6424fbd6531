"""Settings: which source wins, and no password in any text. What is refused: `tests/badinput/test_configuration.py`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from pgqueue.dsn import normalize_dsn, redact_dsn
from pgqueue.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, entered, and an environment without settings."""
    import os

    for name in list(os.environ):
        if name.startswith("PGQUEUE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert (settings.dsn, settings.queues, settings.concurrency, settings.processes) == (
        None,
        ("default",),
        50,
        1,
    )
    assert (settings.drain_limit, settings.lease, settings.beat, settings.upkeep_interval) == (25, 30, 2, 4)
    assert set(settings.sources.values()) == {"default"}


def test_flags_win_over_the_environment_over_the_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pgqueue.toml").write_text('concurrency = 1\nprocesses = 1\nlease = "20s"\n')
    monkeypatch.setenv("PGQUEUE_CONCURRENCY", "2")
    monkeypatch.setenv("PGQUEUE_PROCESSES", "2")
    settings = load_settings(concurrency=3, processes=None)
    assert (settings.concurrency, settings.processes, settings.lease) == (3, 2, 20)
    assert settings.sources["concurrency"] == "flag"
    assert settings.sources["processes"] == "PGQUEUE_PROCESSES"
    assert settings.sources["lease"] == str(project / "pgqueue.toml")
    assert settings.sources["beat"] == "default"


def test_our_own_variable_wins_over_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://one/db")
    assert load_settings().dsn == "postgresql://one/db"
    assert load_settings().sources["dsn"] == "DATABASE_URL"
    monkeypatch.setenv("PGQUEUE_DSN", "postgresql://two/db")
    assert load_settings().dsn == "postgresql://two/db"


def test_database_url_wins_over_the_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pgqueue.toml").write_text('dsn = "host=file"')
    monkeypatch.setenv("DATABASE_URL", "host=environment")
    assert load_settings().dsn == "host=environment"


def test_the_nearest_file_upwards_is_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text('[tool.pgqueue]\nqueues = ["email:20", "default"]\n')
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert load_settings().queues == ("email:20", "default")
    (inner.parent / "pyproject.toml").write_text("[tool.other]\n")  # has no table of ours: goes on upwards
    assert load_settings().queues == ("email:20", "default")
    (inner / "pgqueue.toml").write_text('queues = "one, two"\n')
    assert load_settings().queues == ("one", "two")


def test_the_environment_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_QUEUES", "email:20,default")
    monkeypatch.setenv("PGQUEUE_LEASE", "1m")
    monkeypatch.setenv("PGQUEUE_BEAT", "2.5")
    monkeypatch.setenv("PGQUEUE_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("PGQUEUE_WAKE", "")
    settings = load_settings()
    assert (settings.queues, settings.lease, settings.beat) == (("email:20", "default"), 60, 2.5)
    assert (settings.log_level, settings.wake) == ("warning", "auto")


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_PORT_5432_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("PGQUEUE_TEST_DATABASE_URL", "x")
    monkeypatch.setenv("PGQUEUE_METRICS_PORT", "tcp://10.0.0.1:9464")  # a service named pgqueue-metrics
    assert load_settings() == Settings()


def test_no_password_is_part_of_the_settings_text() -> None:
    assert "hunter2" not in repr(load_settings(dsn="postgresql://app:hunter2@db/app"))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
def test_the_spellings_of_a_dsn_become_libpqs(scheme: str) -> None:
    assert normalize_dsn(f"{scheme}://app:a%40b@db:5432/app?sslmode=require") == (
        "postgresql://app:a%40b@db:5432/app?sslmode=require"
    )


def test_key_value_dsns_stay_as_they_are() -> None:
    assert normalize_dsn(" host=db options='-c a=b://c' ") == "host=db options='-c a=b://c'"


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://app@db/app", "postgresql://app@db/app"),
        ("postgresql://db:5432,other:5433/app", "postgresql://db:5432,other:5433/app"),
        ("postgresql://[::1]:5432/app", "postgresql://[::1]:5432/app"),
        ("postgresql://app:s3cr3t@db/app", "postgresql://app:***@db/app"),
        ("postgresql://app:s3c/r3t@w?x@db/app", "postgresql://app:***@db/app"),
        ("postgresql://app:s3cr3t", "postgresql://app:***"),
        ("postgresql://db/app?user=a&password=s3cr3t&x=1", "postgresql://db/app?user=a&password=***&x=1"),
        ("postgresql://db/app?sslpassword=s3cr3t", "postgresql://db/app?sslpassword=***"),
        ("host=db password=s3cr3t user=a", "host=db password=*** user=a"),
        ("password = 's3 \\' cr3t' host=db", "password = *** host=db"),
        ("PASSWORD='s3cr3t", "PASSWORD=***"),
        ("s3cr3t", "***"),
    ],
)
def test_a_password_is_never_shown(dsn: str, shown: str) -> None:
    assert redact_dsn(dsn) == shown


@hypothesis(deadline=None)  # a loaded machine is no failure
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=6))
def test_no_password_survives_in_any_spelling(password: str) -> None:
    marked = f"5ecret{password}5ecret"
    quoted = marked.replace("\\", "\\\\").replace("'", "\\'")
    for dsn in (
        f"postgresql://app:{quote(marked, safe='')}@db/app",
        f"postgresql://app:{marked}@db/app",
        f"postgresql://db/app?password={quote(marked, safe='')}",
        f"host=db password='{quoted}' user=app",
    ):
        assert "5ecret" not in redact_dsn(dsn)
