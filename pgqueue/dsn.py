"""How a database is named, and how that is shown to people: never with its password."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
_SECRET = re.compile(r"(?i)pass(?!file)|pwd|secret|token|scram_\w*key")
"""In the name of what is not shown."""
_TELLS = re.compile(r"(?i)(?:pass(?!file)|pwd|secret|token|scram_\w*key)\w*[\"']?\s*[=:](?!\s*\*\*\*)")
"""Text in which such a thing follows."""
_PARAMETER = re.compile(r"([?&;])([^=&;]*)=([^&]*)")
_PAIR = re.compile(
    r"\s*(?P<name>\w+)\s*=\s*(?P<value>'(?:[^'\\]|\\.)*'(?=\s|\Z)|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|)",
    re.DOTALL,
)


def normalize_dsn(dsn: str) -> str:
    """The DSN as libpq reads it: SQLAlchemy's and asyncpg's spellings of the scheme become `postgresql://`.

    Raises `ValueError`, without the DSN's password, for what is none.

    >>> normalize_dsn("postgresql+asyncpg://app@db/app")
    'postgresql://app@db/app'
    """
    dsn = dsn.strip()
    if "\0" in dsn:
        raise ValueError("a DSN cannot hold the character NUL")
    if re.search(r"[\ud800-\udfff]", dsn):
        raise ValueError("a DSN cannot hold a lone surrogate: what was given is no UTF-8")
    scheme, separator, rest = dsn.partition("://")
    if separator and re.fullmatch(r"[A-Za-z0-9+.-]+", scheme):
        if not re.fullmatch(r"postgres(ql)?(\+[a-z0-9_]+)?", scheme.lower()):
            raise ValueError(f"{scheme[:40]}:// is no PostgreSQL, expected postgresql://user@host/name")
        return f"postgresql://{rest}"
    if "=" not in dsn:
        raise ValueError("expected postgresql://user@host/name or key=value pairs such as host=db dbname=app")
    return dsn


def redact_dsn(dsn: str) -> str:
    """The DSN for people: passwords become `***`. What cannot be understood is hidden rather than shown.

    >>> redact_dsn("postgresql://app:secret@db/app?sslmode=require")
    'postgresql://app:***@db/app?sslmode=require'
    >>> redact_dsn("host=db user=app password='top secret'")
    'host=db user=app password=***'
    """
    scheme, separator, rest = dsn.strip().partition("://")
    if separator and re.fullmatch(r"[A-Za-z0-9+.-]+", scheme):
        shown = f"{scheme}://{_redact_uri(rest)}"
    else:
        shown = _redact_pairs(dsn)
    return HIDDEN if _TELLS.search(unquote(shown)) else shown


def _redact_uri(rest: str) -> str:
    # The last @, since a password may hold one that nobody escaped.
    login, at, place = rest.rpartition("@")
    user, colon, password = login.partition(":")
    if re.search(r"[/?#&;=\s]", user):
        return HIDDEN  # the @ is not that of a login: in ?password=a@b it is that of the password
    if re.search(r"[/?&;][^=]*=", password):
        return f"{user}:{HIDDEN}@{HIDDEN}"  # perhaps a host and its parameters, the last of which holds the @
    if not at:  # a login without a host looks like a host with a port that is no number
        for host in re.split(r"[/?]", place, maxsplit=1)[0].split(","):
            name, _, port = re.sub(r"^\[[0-9A-Fa-f:.%]*\]", "", host).partition(":")
            if port and not port.isdecimal():
                return f"{name}:{HIDDEN}"
    return f"{user}{colon and ':' + HIDDEN}{at}{_PARAMETER.sub(_redact_parameter, place)}"


def _redact_parameter(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    return f"{mark}{name}={HIDDEN if _is_secret(unquote(name), unquote(value)) else value}"


def _redact_pairs(dsn: str) -> str:
    shown, end = "", 0
    while found := _PAIR.match(dsn, end):
        shown += dsn[end : found.start("value")]
        shown += HIDDEN if _is_secret(found["name"], found["value"]) else found["value"]
        end = found.end()
        if _TELLS.search(found["value"]) and not found["value"].startswith("'"):
            break  # a name where a value should be: what comes next may be its own
    if not shown or "://" in dsn:  # the blank and the = may be those of a password in a URI
        return HIDDEN
    if dsn[end:].strip() and not shown.endswith(HIDDEN):  # libpq stops here too
        shown += f" {HIDDEN}"
    return shown


def _is_secret(name: str, value: str) -> bool:
    """Also what holds a secret of another kind: `options='-c app.token=x'`, a URI as a database's name."""
    return bool(_SECRET.search(name) or _TELLS.search(value) or re.search("://|:.*@", value, re.DOTALL))
