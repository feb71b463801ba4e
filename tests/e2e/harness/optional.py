"""What a test needs and not every machine has: without it the test is skipped, or fails where it was asked for."""

import os

import pytest

# Names of what must be there, with spaces between them: PENSTOCK_REQUIRE="npm nginx".
REQUIRE = "PENSTOCK_REQUIRE"


def need(name: str, missing: str) -> None:
    """Skips the test if `missing` says why `name` is not to be had here; fails it if PENSTOCK_REQUIRE has the name."""
    if not missing:
        return
    if name in os.environ.get(REQUIRE, "").split():
        pytest.fail(f"{REQUIRE} asks for {name}: {missing}", pytrace=False)
    pytest.skip(f"{missing} ({REQUIRE}={name} makes this a failure)")
