"""How much is fuzzed: a little and always the same in CI, more with PGQUEUE_FUZZ_EXAMPLES=20000."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["fuzzed", "json_values", "texts"]

_EXAMPLES = int(os.environ.get("PGQUEUE_FUZZ_EXAMPLES", "0"))


def fuzzed(examples: int, *, deadline: float | None = None) -> settings:
    """`examples` of them, the same every time; with PGQUEUE_FUZZ_EXAMPLES so many, and others each time.

    `deadline`: the seconds that one may take.
    """
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None if deadline is None else timedelta(seconds=deadline),
        suppress_health_check=list(HealthCheck),
    )


texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20),
    st.sampled_from(
        ["", "a", "'", '"', "\\", "%", "_", ";--", "$$", "\x1b[31m", "\u202e", "\u2019", "{0}", "%s", "x" * 300, "NaN", "Infinity",
         "now", "2026-01-01", "7", "-1", "007", " 3", "1e5", "true", "null", "{}", "[]", "default", "\n", "\x7f"]
    ),
)  # fmt: skip
"""What people type, and what they do not; nothing that UTF-8 or PostgreSQL's text cannot hold."""

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
