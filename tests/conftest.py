"""What every test shares: the profile of generated cases, and where data that is not ours lies."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# No deadline: how long a case takes is a matter for tests/bench. In CI the cases are the same in each run.
settings.register_profile("laptop", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("laptop"), derandomize=True, print_blob=True)
settings.register_profile(
    "thorough", deadline=None, max_examples=2_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("SOMA_TEST_PROFILE", "ci" if os.environ.get("CI") else "laptop"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See that no two tests have one id: of those, all but one are lost where several processes share the tests."""
    counted = Counter(item.nodeid for item in items)
    if twice := [nodeid for nodeid, count in counted.items() if count > 1]:
        raise pytest.UsageError(f"{len(twice)} ids are given to more than one test, such as {twice[0]}")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Locate the real data sets beside the project; tests that need them skip where they are absent."""
    place = Path(os.environ.get("SOMA_SHARED_DIR", ROOT.parent / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(
            "needs the data sets in ../shared (or SOMA_SHARED_DIR), which are not part of the project"
        )
    return place
