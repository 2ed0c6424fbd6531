"""What `pgqueue doctor` looks at. Each check is a function of a `Patient` that yields findings, none when all is well."""

from pgqueue.cli.checks.finding import Check, Finding, Patient, Severity
from pgqueue.cli.checks.schema import SCHEMA
from pgqueue.cli.checks.server import SERVER
from pgqueue.cli.checks.work import WORK

__all__ = ["CHECKS", "Check", "Finding", "Patient", "Severity"]

CHECKS: dict[str, Check] = SERVER | SCHEMA | WORK
"""By name, in the order in which they are made."""
