"""What every test shares: quiet threads, no writing to the home folder, and the skipping of GPU tests."""

import os

# Before torch is imported: two workers with a thread pool each would fight over the same cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from diffkit.torchaudio import mend

# transformers, and diffusers with it, imports torchaudio where that is installed, and fails where it cannot be loaded.
mend()


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what the tests prepare out of the user's cache, unless the user named one."""
    os.environ.setdefault("DIFFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
