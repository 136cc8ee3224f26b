"""Fixtures that any test may ask for."""

from collections.abc import Iterator

import pytest

# Of these, tests measure, or keep to a time: nothing else may compute meanwhile.
ALONE = {
    "test_diagnosis", "test_faults", "test_loop_options", "test_panel", "test_probe", "test_profiling_properties", "test_progress",
    "test_readbacks", "test_recorder", "test_remedied", "test_remedies", "test_system", "test_train", "test_validation",
    "test_watching", "test_workers",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run one by one."""
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: layers as small as the tests' only wait for a second one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
