"""Settings: flags, then the environment, then a file, then the defaults. All that is wrong is said at once.

[tool.pgqueue]                      # in pyproject.toml, or the same keys at the top of pgqueue.toml
dsn = "postgresql://app@db/app"
queues = ["email:20", "default"]
drain_limit = "25s"
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pgqueue.dsn import normalize_dsn, redact_dsn
from pgqueue.encryption import Keyring, read_keys
from pgqueue.error_text import one_line, plain, safe_repr, type_name
from pgqueue.errors import ConfigurationError, InvalidOption
from pgqueue.job import seconds
from pgqueue.redaction import DEFAULT_NAMES

ENVIRONMENT_PREFIX = "PGQUEUE_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be configured. Durations are seconds here, and may be written as "25s" or "5m" anywhere.

    Raises one `ConfigurationError` for all values that are out of range, or that contradict each other.
    """

    dsn: str | None = field(default=None, repr=False)
    """The database: a URI or key=value pairs, as libpq reads them."""
    queues: tuple[str, ...] = ("default",)
    """The queues that a worker serves; "email:20" limits it to 20 jobs of that queue at once."""
    concurrency: int = 50
    """Slots of one worker process: 1 to 10,000."""
    processes: int = 1
    """Worker processes: 1 to 256."""
    drain_limit: float = 25.0
    """How long the first SIGTERM waits for running jobs before they are released."""
    lease: float = 30.0
    """How long a worker that stopped beating keeps its jobs."""
    beat: float = 2.0
    """How often a worker shows that it is alive; less than a third of the lease."""
    upkeep_interval: float = 4.0
    """How often a worker looks after the queue as a whole."""
    wake: Literal["auto", "listen", "poll"] = "auto"
    """How an idle worker hears of new jobs: by LISTEN, by looking, or as a probe finds."""
    poll_interval: float = 1.0
    """How often an idle worker looks when it cannot listen."""
    max_args_bytes: int = 1_048_576
    """The most bytes of JSON that a job's args may take: 1 KiB to 64 MiB."""
    max_result_bytes: int = 65_536
    """The most bytes of JSON that a kept result may take: 1 KiB to 16 MiB."""
    transactional_connections: int = 5
    """Transactional jobs and steps of async handlers that have a connection at once in one process, and as many steps of sync handlers: 1 to 100."""
    task_processes: int | None = None
    """Processes of one worker process for `executor="process"`, and as many for jobs that crashed: 1 to 256; None: one for each CPU."""
    block_threshold: float = 1.0
    """How long a handler may keep a worker's event loop from running before the watchdog says so; 0: never."""
    metrics_port: int | None = None
    """Where a worker answers /metrics, /livez, /readyz and /health over HTTP: 1 to 65,535, or 0 for a port that is free; None: it does not."""
    metrics_host: str = "0.0.0.0"
    """The address that it listens on for these; every one of IPv4 unless told otherwise."""
    encryption_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys for what is encrypted, `id:base64` each (`pgqueue keys generate`): the first one seals, all of them open."""
    redact: tuple[str, ...] = DEFAULT_NAMES
    """Names of args, `*` for anything, whose values are kept out of what pgqueue prints, logs and stores of errors; "none": no name."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """Log lines of the command: JSON unless stderr is a terminal, or one of the two."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each value came from: "flag", the variable's or the file's name, or "default"."""

    @property
    def limits(self) -> dict[str, int | None]:
        """The queues by name, each with the most jobs of it that one worker runs at once, None: no own limit."""
        parts = [queue.partition(":") for queue in self.queues]
        return {name: int(limit) if limit else None for name, _, limit in parts}

    @property
    def shown(self) -> dict[str, Any]:
        """Every setting but `sources`, without a secret: the DSN has no password, of the keys there are the ids."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "sources"}
        values["dsn"] = self.dsn and redact_dsn(self.dsn)
        values["encryption_keys"] = tuple(read_keys(self.encryption_keys))
        return values

    def keyring(self) -> Keyring | None:
        """The keys of `encryption_keys`; None: there are none. Raises `ConfigurationError`."""
        return Keyring(read_keys(self.encryption_keys)) if self.encryption_keys else None

    def __post_init__(self) -> None:
        wrong = []
        for name, read in _READERS.items():
            value = getattr(self, name)
            if value is not None or type(self).__dataclass_fields__[name].default is not None:
                try:
                    object.__setattr__(self, name, read(value))  # frozen for all but the constructor
                except ValueError as error:
                    wrong.append(f"{name}: {error}")
        if wrong := wrong or contradictions(self):
            raise _refused(wrong)


def contradictions(settings: Settings) -> list[str]:
    """What does not fit together, one line each."""
    wrong = []
    if settings.beat >= settings.lease / 3:
        wrong.append(
            f"beat: {settings.beat:g} s is not less than a third of lease, {settings.lease:g} s: two lost beats "
            "would cost a living worker its jobs"
        )
    if settings.upkeep_interval > settings.lease:
        wrong.append(
            f"upkeep_interval: {settings.upkeep_interval:g} s is more than lease, {settings.lease:g} s: a dead "
            "worker's jobs would wait for it"
        )
    names = [queue.partition(":")[0] for queue in settings.queues]
    wrong += [
        f"queues: {_shown(name)} is listed twice" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    return wrong


# Reading one value -------------------------------------------------------------------------------------


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,12}(_[0-9]{1,12})*\s*", value[:30]):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected an integer from {low:,} to {high:,}, got {_shown(value)}")
        return int(value)

    return read


def _duration(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if not isinstance(value, str | int | float | timedelta) or isinstance(value, bool):
            raise ValueError(f"expected a duration such as 25 or '25s', got {_shown(value)}")
        # the environment and flags know text alone
        is_number = isinstance(value, str) and re.fullmatch(r"\s*[0-9.]{1,20}\s*", value)
        try:
            number = seconds(f"{value}s" if is_number else value, name="")
        except InvalidOption as error:
            raise ValueError(f"expected a duration such as 25 or '25s', got {_shown(value)}") from error
        if not low <= number <= high:
            raise ValueError(f"expected from {low:g} to {high:g} seconds, got {_shown(value)}")
        return number

    return read


def _choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value.strip().lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, got {_shown(value)}")
        return value.strip().lower()

    return read


def _queues(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"expected a list of queues such as email:20,default, got {_shown(value)}")
    for queue in value:
        name, colon, limit = queue.partition(":") if isinstance(queue, str) else ("", "", "")
        if not 1 <= len(name) <= 100 or re.search(r"""[\x00-\x1f\x7f-\x9f\ud800-\udfff*'"`\\]""", name):
            raise ValueError(
                f"{_shown(queue)} is no queue: 1 to 100 characters without quotes, * and controls"
            )
        if colon and not re.fullmatch(r"[1-9][0-9]{0,5}", limit):
            raise ValueError(
                f"{_shown(queue)}: expected a limit of at least 1 after the colon, such as email:20"
            )
    return tuple(value)


def _encryption_keys(value: Any) -> tuple[str, ...]:
    lines = _lines(value)
    if lines is None:  # what was given is not repeated: it may be a key
        raise ValueError(f"expected a list of keys, id:base64 each, got {type(value).__name__}")
    try:
        read_keys(lines)
    except ConfigurationError as error:
        raise ValueError(str(error).removeprefix("encryption_keys: ")) from error
    return lines


def _redact(value: Any) -> tuple[str, ...]:
    names = _lines(value)
    if names is None or any(not 1 <= len(name) <= 100 for name in names):
        raise ValueError(
            f"expected a list of names of args such as *password*,card_number, got {_shown(value)}"
        )
    return () if names == ("none",) else names


def _lines(value: Any) -> tuple[str, ...] | None:
    """A list of texts, or one text with commas; None: neither."""
    if isinstance(value, str):
        value = [part for part in map(str.strip, value.split(",")) if part]
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        return None
    return tuple(value)


def _dsn(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"expected postgresql://user@host/name or key=value pairs, got {type(value).__name__}"
        )
    return normalize_dsn(value)


def _host(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", value.strip()):
        raise ValueError(f"expected an address or a name such as 127.0.0.1, got {_shown(value)}")
    return value.strip()


_READERS: dict[str, Callable[[Any], Any]] = {
    "dsn": _dsn,
    "queues": _queues,
    "concurrency": _integer(1, 10_000),
    "processes": _integer(1, 256),
    "drain_limit": _duration(0, 86_400),
    "lease": _duration(1, 3_600),
    "beat": _duration(0.1, 600),
    "upkeep_interval": _duration(0.1, 600),
    "wake": _choice("auto", "listen", "poll"),
    "poll_interval": _duration(0.01, 600),
    "max_args_bytes": _integer(1024, 64 * 1024 * 1024),
    "max_result_bytes": _integer(1024, 16 * 1024 * 1024),
    "transactional_connections": _integer(1, 100),
    "task_processes": _integer(1, 256),
    "block_threshold": _duration(0, 3_600),
    "metrics_port": _integer(0, 65_535),
    "metrics_host": _host,
    "encryption_keys": _encryption_keys,
    "redact": _redact,
    "log_format": _choice("auto", "json", "console"),
    "log_level": _choice("debug", "info", "warning", "error"),
}


# Where values come from --------------------------------------------------------------------------------


def load_settings(**overrides: Any) -> Settings:
    """The settings: `overrides` (None: not given) over `PGQUEUE_*` and `DATABASE_URL` over a file.

    The file is the first found from the working directory upwards: `pgqueue.toml`, or a `pyproject.toml`
    with `[tool.pgqueue]`.

    Raises one `ConfigurationError` for unknown keys, wrong types, values out of range and contradictions
    together. No password is part of it.
    """
    wrong: list[str] = []
    given: dict[str, tuple[Any, str]] = {}
    for name, value in _from_file(wrong).items():
        given[name] = value
    given.update(_from_environment(wrong))
    for name, value in overrides.items():
        if name not in _READERS:
            wrong.append(f"{one_line(name, 100)}: no such setting{_did_you_mean(name)}")
        elif value is not None:
            given[name] = (value, "flag")

    values: dict[str, Any] = {}
    sources = dict.fromkeys(_READERS, "default")
    for name, (value, source) in given.items():
        try:
            values[name] = _READERS[name](value)
            sources[name] = source
        except ValueError as error:
            wrong.append(f"{name}: {error}" + ("" if source == "flag" else f" ({source})"))
    try:
        settings = Settings(**values, sources=MappingProxyType(sources))
    except ConfigurationError as error:
        wrong += str(error).split("\n")
    if wrong:
        raise _refused(wrong)
    return settings


def override(settings: Settings, **overrides: Any) -> Settings:
    """`settings` with some of them replaced (None: not given), read and checked as by `load_settings`.

    Raises one `ConfigurationError` for all that is wrong.
    """
    wrong: list[str] = []
    values: dict[str, Any] = {}
    for name, value in overrides.items():
        try:
            if value is not None:
                values[name] = _READERS[name](value)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise _refused(wrong)
    sources = {**settings.sources, **dict.fromkeys(values, "argument")}
    return replace(settings, **values, sources=MappingProxyType(sources))


def _from_environment(wrong: list[str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    if url := os.environ.get("DATABASE_URL"):
        found["dsn"] = (url, "DATABASE_URL")
    for variable, value in sorted(os.environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or value == "":
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name == "metrics_port" and re.match(r"(tcp|udp)://", value):
            continue  # Kubernetes sets it so for a service named pgqueue-metrics
        if name in _READERS:
            found[name] = (value, variable)
        elif hint := _did_you_mean(name, 0.8, ENVIRONMENT_PREFIX):
            # Others are none of ours to judge: Kubernetes sets PGQUEUE_PORT for a service named pgqueue.
            wrong.append(f"{one_line(variable, 100)}: no such setting{hint}")
    return found


def _from_file(wrong: list[str]) -> dict[str, tuple[Any, str]]:
    found = _file()
    if found is None:
        return {}
    path, table = found
    given: dict[str, tuple[Any, str]] = {}
    for name, value in table.items():
        if name in _READERS:
            given[name] = (value, str(path))
        else:
            wrong.append(f"{one_line(name, 100)}: no such setting{_did_you_mean(name)} ({path})")
    return given


def _file() -> tuple[Path, dict[str, Any]] | None:
    """The nearest file with settings, and its table."""
    try:
        here = Path.cwd()
    except OSError:
        return None  # the working directory was removed
    for folder in (here, *here.parents):
        path = folder / "pgqueue.toml"
        if path.is_file():
            return path, _toml(path)
        path = folder / "pyproject.toml"
        if path.is_file() and b"pgqueue" in _bytes(path):
            tools = _toml(path).get("tool")
            table = tools.get("pgqueue") if isinstance(tools, dict) else None
            if isinstance(table, dict):
                return path, table
    return None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_bytes(path).decode())
    except (ValueError, RecursionError) as error:  # TOML or UTF-8; neither message quotes a value
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error


def _refused(wrong: list[str]) -> ConfigurationError:
    return ConfigurationError("\n".join(wrong))


def _did_you_mean(name: str, cutoff: float = 0.6, prefix: str = "") -> str:
    close = difflib.get_close_matches(name[:100], [f.name for f in fields(Settings)[:-1]], 1, cutoff)
    return f", did you mean {prefix}{close[0].upper() if prefix else close[0]}?" if close else ""


def _shown(value: Any) -> str:
    """What was given. It may be a DSN in the wrong place: no password is shown, and of a list nothing."""
    if isinstance(value, str) and ("://" in value or "=" in value):
        return plain(one_line(redact_dsn(value), 80))
    if value is None or isinstance(value, str | int | float | timedelta):
        return safe_repr(value)
    return f"a value of type {type_name(type(value))}"
