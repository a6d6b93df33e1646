"""The icons, rendered once for all tests of the session."""

import pytest

from mmkernels.data import load_icons


@pytest.fixture(scope="session")
def icon_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def icons(icon_cache):
    pytest.importorskip("PIL")
    pytest.importorskip("safetensors")
    return load_icons(icon_cache, progress=False)
