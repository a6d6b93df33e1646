"""What the numbers belong to: hardware and versions, and nothing that names a person or a computer."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

PACKAGES = (
    *("torch", "triton", "numpy", "open_clip_torch", "memeff", "inf_cl", "cut-cross-entropy"),
    *("pykeops", "cca-zoo", "gpytorch", "scikit-learn"),
)


def device() -> str:
    """The device that is measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hardware() -> str:
    """The GPU's name, or the CPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", flags=re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


def name() -> str:
    """A file name for this machine's results: cpu, or the GPU's name."""
    return re.sub(r"\W+", "_", hardware().lower()) if torch.cuda.is_available() else "cpu"


def describe() -> dict[str, object]:
    """The hardware and the versions of everything that was measured here."""
    import mmkernels

    versions = {"mmkernels": mmkernels.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # peers are optional
    return {
        "device": device(),
        "name": name(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "the default").lower(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions | {"torch": torch.__version__},
    }
