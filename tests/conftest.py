"""Shared fixtures. On a machine with a CUDA GPU the same tests run there, on the Triton kernels.

Deterministic mode fills every `torch.empty` with NaN: memory that is read before it is written shows.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode asks for it, before CUDA starts
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on shared cores

import pytest
import torch

from mmkernels.tiled import _tiles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    vars(_tiles._kept).clear()  # the next scratch is filled too
    yield
    torch.use_deterministic_algorithms(False)
