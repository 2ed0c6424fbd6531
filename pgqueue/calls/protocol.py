"""What everybody calls first."""

from __future__ import annotations

from typing import NamedTuple

from pgqueue import version
from pgqueue.calls.call import Call, Rows, Verb
from pgqueue.errors import SchemaOutdated, SchemaTooNew

PROTOCOL = Verb("protocol", (), ("newest", "oldest"))


class Served(NamedTuple):
    """The range of protocols that a schema serves; the result columns of `pgqueue.protocol()`."""

    newest: int
    oldest: int

    def check(self, spoken: int = version.PROTOCOL) -> None:
        """Raises `SchemaOutdated` or `SchemaTooNew` when `spoken` is outside of the range.

        >>> Served(newest=3, oldest=2).check(spoken=3)
        """
        serves = f"the schema pgqueue serves protocols {self.oldest} to {self.newest}, this pgqueue-jobs "
        serves += f"{version.__version__} speaks {spoken}"
        if spoken > self.newest:
            raise SchemaOutdated(f"{serves}: run `pgqueue db upgrade`")
        if spoken < self.oldest:
            raise SchemaTooNew(
                f"{serves}: upgrade pgqueue-jobs (`pgqueue db upgrade` does not help, the database is ahead)"
            )


def protocol() -> Call[Served]:
    """The range of protocols that the schema serves; `Served.check` decides. Asked before data is touched."""
    return Call(PROTOCOL, (), _served)


def _served(rows: Rows) -> Served:
    return Served(*rows[0])
