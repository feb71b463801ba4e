from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.launcher import LAUNCHER, Launcher
from harness.models import integer_model, tiny_llama


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def integer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return integer_model(tmp_path_factory.mktemp("models") / "integer")


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The integer model without an end token."""
    return integer_model(tmp_path_factory.mktemp("models") / "endless", eos=None)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """Starts launchers that share a TMPDIR; whatever still runs at the end of the test is killed."""
    assert LAUNCHER.exists(), f"{LAUNCHER} is not there: make build"
    running: list[Launcher] = []

    def start(*flags: str | Path) -> Launcher:
        running.append(Launcher(tmp_path, *map(str, flags)))
        return running[-1]

    yield start
    for launcher in running:
        launcher.__exit__()
