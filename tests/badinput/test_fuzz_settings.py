"""Whatever is configured, in code, in the environment, in a file: settings, or one error; and no password in any text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgqueue.dsn import normalize_dsn, redact_dsn
from pgqueue.errors import ConfigurationError
from pgqueue.settings import Settings, load_settings
from tests.badinput.fuzzing import fuzzed, texts
from tests.badinput.test_fuzz_args import BAD_TEXT
from tests.badinput.test_fuzz_options import things

MARK = "5ecret"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, entered, and an environment without settings."""
    for name in list(os.environ):
        if name.startswith("PGQUEUE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# DSNs ---------------------------------------------------------------------------------------------------

_any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_marks = st.text(st.sampled_from("@:/?#&;=,[]%+ '\"\\.-_a1"), max_size=8)
passwords = st.one_of(_marks, _any_text).map(lambda inner: f"{MARK}{inner}{MARK}")
_words = st.sampled_from(["app", "db", "a-b", "db.example.org", "10.0.0.1", "x_1"])
_hosts = st.lists(
    st.one_of(_words, st.sampled_from(["[::1]", "db:5432", "[fe80::1]:5433", "%2Ftmp"])),
    min_size=1,
    max_size=3,
).map(",".join)
_schemes = st.sampled_from(
    ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg", "POSTGRESQL", " postgresql"]
)
_secret_names = st.sampled_from(
    ["password", "sslpassword", "PASSWORD", "oauth_client_secret", "scram_client_key", "scram_server_key"]
)
_plain_pairs = st.sampled_from(
    [
        ("sslmode", "require"),
        ("application_name", "a b"),
        ("options", "-c x=y"),
        ("passfile", "/p"),
        ("host", "/tmp"),
    ]
)


def _encoded(name: str) -> str:
    """libpq reads names in a URI with any of their letters as %xx."""
    return f"{name[:2]}%{ord(name[2]):02x}{name[3:]}"


@st.composite
def uris(draw: st.DrawFn) -> str:
    secret = draw(passwords)
    written = draw(st.sampled_from([secret, quote(secret, safe="")]))
    # What ends a value for libpq itself is written %xx by whoever wants to log in.
    in_query = written.replace("&", "%26").replace("#", "%23")
    name = draw(_secret_names.flatmap(lambda name: st.sampled_from([name, _encoded(name)])))
    user, host, place = draw(_words), draw(_hosts), draw(st.sampled_from(["", "/", "/app"]))
    plain = [f"{key}={quote(value)}" for key, value in draw(st.lists(_plain_pairs, max_size=2))]
    kind = draw(st.integers(0, 4))
    if kind == 0:
        login, params = f"{user}:{written}@", plain
    elif kind == 1:
        login, params = (
            draw(st.sampled_from(["", f"{user}@", f"{user}:{written}@"])),
            [*plain, f"{name}={in_query}"],
        )
    elif kind == 2:
        login, params = "", [f"{name}={in_query}", *plain]
    elif kind == 3:
        login, params = f":{written}@", plain
    else:
        login, params = "", [*plain, f"options={quote(f'-c app.password={secret}')}"]
    return f"{draw(_schemes)}://{login}{host}{place}{'?' if params else ''}{'&'.join(params)}"


@st.composite
def pairs(draw: st.DrawFn) -> str:
    secret = draw(passwords)
    quoted = "'" + secret.replace("\\", "\\\\").replace("'", "\\'") + "'"
    bare = re.sub(r"([\s\\'])", r"\\\1", secret)
    spaces = st.sampled_from(["", " ", "  ", "\t"])
    equals = f"{draw(spaces)}={draw(spaces)}"
    parts = [f"{key}{equals}'{value}'" for key, value in draw(st.lists(_plain_pairs, max_size=3))]
    hidden = draw(
        st.sampled_from(
            [f"{draw(_secret_names)}{equals}{quoted}", f"{draw(_secret_names)}{equals}{bare}",
             f"options{equals}'-c app.password={bare}'", f"dbname{equals}postgresql://a:{quote(secret, safe='')}@b/c"]
        )
    )  # fmt: skip
    parts.insert(draw(st.integers(0, len(parts))), hidden)
    return draw(st.sampled_from([" ", "\n", "   "])).join(parts)


dsns = st.one_of(uris(), pairs())


def cut(dsn: str, share: float) -> str:
    """The beginning, with the password begun at least."""
    start = dsn.index(MARK) + len(MARK)
    return dsn[: start + round(share * (len(dsn) - start))]


@given(dsns)
@example("postgresql://db/app?password=5ecret@x5ecret")
@example("postgresql://db/app?pass%77ord=5ecret")
@example('"postgresql://app:5ecret@db/app?sslmode=require"')
@example("host=db password='5ecret'5ecret'")
@example("app:5ecret@db/app?sslmode=require")
@example("postgresql://app:x@db/app?password=y@5ecret")
@example("postgresql://app:5ecret]5ecret")
@example("dbname=postgresql://u:5ecret@h/db")
@example("postgresql://db/app;password=5ecret")
@example("postgresql:app:5ecret@db")
@example('postgresql://app:5ecret _="5ecret@db')
@fuzzed(150)
def test_no_spelling_lets_a_password_out(dsn: str) -> None:
    for spelt in (
        dsn,
        f" {dsn}\n",
        f'"{dsn}"',
        f"'{dsn}'",
        f"jdbc:{dsn}",
        dsn.partition("://")[2] or dsn,
        f"dsn={dsn}",
    ):
        assert MARK not in redact_dsn(spelt), spelt


@given(dsns, st.floats(0, 1))
@fuzzed(100)
def test_no_beginning_of_one_lets_a_password_out(dsn: str, share: float) -> None:
    part = cut(dsn, share)
    if "://" in part and "@" in part[part.index(MARK) :]:
        return  # what comes after an @ that nobody escaped is the host, to all who read it
    assert MARK not in redact_dsn(part), part


@given(dsns)
@fuzzed(30)
def test_a_dsn_in_the_wrong_place_is_told_without_its_password(dsn: str) -> None:
    for given_ in ({"lease": dsn}, {"concurrency": dsn}, {"wake": dsn}, {"queues": [dsn, dsn]}, {"wake": [dsn]}, {"dsn": f"mysql{dsn}"},
                   {"metrics_host": dsn}, {"queues": {dsn: 1}}, {"queues": [[dsn]]}, {"log_level": (dsn,)}):  # fmt: skip
        try:
            load_settings(**given_)
        except ConfigurationError as refused:
            message = str(refused)
            assert MARK not in message, message
    shown = repr(Settings(dsn=dsn))
    assert MARK not in shown


def test_what_is_no_secret_is_shown() -> None:
    for dsn in (
        "postgresql://app@db:5432,other:5433/app?sslmode=require&target_session_attrs=read-write",
        "postgresql://[::1]:5432/app",
        "postgresql:///app?host=/tmp&user=app&passfile=/home/app/.pgpass",
        "host=/tmp port=5432 dbname=app passfile=/p application_name='a b'",
    ):
        assert redact_dsn(dsn) == dsn
        assert normalize_dsn(dsn) == dsn


# Values -------------------------------------------------------------------------------------------------

NAMES = [part.name for part in fields(Settings) if part.name != "sources"]
_names = st.one_of(st.sampled_from(NAMES), st.sampled_from(["leese", "drain", "", "a b", "\udcff", "dsn\n"]))
_likely = st.one_of(
    st.integers(-1, 70_000), st.floats(), st.sampled_from(["1s", "25s", "2m", "auto", "json", "info", "a:1,b", "email:20", "host=a", "none"]), texts, BAD_TEXT
)  # fmt: skip


def is_sound(settings: Settings) -> bool:
    """Made anew of its own values it is the same, and those are of the types that it says."""
    values = {name: getattr(settings, name) for name in NAMES}
    for name in ("drain_limit", "lease", "beat", "upkeep_interval", "poll_interval", "block_threshold"):
        assert type(values[name]) is float
    for name in (
        "concurrency",
        "processes",
        "max_args_bytes",
        "max_result_bytes",
        "transactional_connections",
    ):
        assert type(values[name]) is int
    assert all(type(queue) is str for queue in settings.queues)
    assert settings.limits
    return Settings(**values) == settings


def is_orderly(refused: ConfigurationError) -> bool:
    """Every line names a setting; nothing in it disturbs a terminal."""
    text = str(refused)
    return bool(text) and all(": " in line and line.isprintable() for line in text.split("\n"))


@given(st.dictionaries(_names, st.one_of(_likely, things), max_size=5))
@fuzzed(40)
def test_settings_of_any_mapping_are_sound_or_refused(values: dict[str, Any]) -> None:
    try:
        settings = load_settings(**values)
    except ConfigurationError as error:
        refused = error
        assert is_orderly(refused)
    else:
        assert is_sound(settings)
    try:
        made = Settings(**{name: value for name, value in values.items() if name in NAMES})
    except ConfigurationError as error:
        refused = error
        assert is_orderly(refused)
    else:
        assert is_sound(made)


_IMPOSSIBLE = {0: None, **dict.fromkeys({*range(0xD800, 0xE000)} - {*range(0xDC80, 0xDD00)}, "\udcff")}
"""What no environment can hold: bytes that are no UTF-8 are read as U+DC80 to U+DCFF."""


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    with mock.patch.dict(os.environ, {name: value.translate(_IMPOSSIBLE) for name, value in values.items()}):
        yield


_variables = st.one_of(
    st.sampled_from(NAMES).map(lambda name: f"PGQUEUE_{name.upper()}"),
    st.sampled_from(
        ["DATABASE_URL", "PGQUEUE_PORT", "PGQUEUE_LEESE", "PGQUEUE_", "PGQUEUE_DRAIN_LIMT\udcff"]
    ),
)


@given(st.dictionaries(_variables, st.one_of(_likely.map(str), texts, dsns, st.just("\udcff")), max_size=5))
@fuzzed(50)
def test_any_environment_makes_sound_settings_or_one_error(values: dict[str, str]) -> None:
    with environment(values):
        try:
            settings = load_settings()
        except ConfigurationError as error:
            refused = error
            assert is_orderly(refused)
            assert MARK not in str(refused)
        else:
            assert is_sound(settings)
            names = "PGQUEUE_QUEUES", "PGQUEUE_REDACT"  # may hold any text, and are no secret
            assert MARK not in repr(settings) or any(MARK in values.get(name, "") for name in names)


_literals = st.recursive(
    st.one_of(
        st.sampled_from(["true", "1", "0.5", "-1", "inf", "nan", "1e400", "0x10", '"25s"', '"auto"', "2026-01-01", "07:00:00", '"""x"""', "'a:3'", "9" * 5_000]),
        texts.map(lambda text: f'"{text}"'),
        st.sampled_from(["[", "]", "{", "=", '"', "\x00", "\udcff"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"), inner.map("{{x = {}}}".format)),
    max_leaves=4,
)  # fmt: skip
_lines = st.tuples(
    st.one_of(st.sampled_from(NAMES), st.sampled_from(["leese", '"a\\nb"', "a.b", ""])), _literals
).map(" = ".join)
_documents = st.one_of(
    st.lists(_lines, max_size=4).map("\n".join),
    st.text(max_size=60),
    st.sampled_from(["[" * 20_000, "a = " + "[" * 20_000, "a." * 5_000 + "b = 1"]),
)


@pytest.mark.parametrize("name", ["pgqueue.toml", "pyproject.toml"])
def test_any_file_makes_sound_settings_or_one_error(name: str, project: Path) -> None:
    head = "[tool.pgqueue]\n" if name == "pyproject.toml" else ""

    @given(_documents)
    @fuzzed(25)
    def load(document: str) -> None:
        (project / name).write_bytes(
            (head + document).encode("utf-8", "surrogateescape" if "\ud800" not in document else "replace")
        )
        try:
            settings = load_settings()
        except ConfigurationError as error:
            refused = error
            assert is_orderly(refused)
        else:
            assert is_sound(settings)

    load()
