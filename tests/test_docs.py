"""The documentation builds without warnings, fetches nothing, covers every public name, and its examples run."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest
import torch

import mmkernels

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLES = {page: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in PAGES}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return {path: path.read_text() for path in folder.rglob("*.html")}


def public_objects(module):
    """What module.__all__ names, and what a public module among those names in its turn."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from public_objects(value)
        else:
            yield f"{module.__name__}.{name}", value


def public_names():
    """The dotted names of `public_objects`, and of whatever else `mmkernels` shows without an underscore."""
    names = {name for name, _ in public_objects(mmkernels)}
    shown = {f"mmkernels.{name}" for name, value in vars(mmkernels).items() if not inspect.ismodule(value)}
    return sorted(names | {name for name in shown if not name.split(".")[1].startswith("_")})


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_a_page(name):
    assert any(re.search(rf"^::: {re.escape(name)}$", page.read_text(), flags=re.MULTILINE) for page in PAGES), (
        f"write '::: {name}' on a page in docs/ops/ and list the page in mkdocs.yml"
    )


def test_pages_document_what_exists():
    for page in PAGES:
        for name in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name} does not exist"


@pytest.mark.parametrize("page", [p for p in PAGES if EXAMPLES[p]], ids=lambda p: str(p.relative_to(ROOT / "docs")))
def test_examples_run(page):
    names = {}
    for example in EXAMPLES[page]:
        exec(compile(example, page, "exec"), names)
    homes = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in names.values()}
    assert any(home.split(".")[0] == "mmkernels" for home in homes), "examples show the library"


def test_calls_of_the_table_run():
    calls = re.findall(r"`([^`]+)` \|$", (ROOT / "docs" / "which_op.md").read_text(), flags=re.MULTILINE)
    assert len(calls) > 10
    x, y, queue = torch.randn(3, 16, 8).unbind()
    one, many = torch.tensor(2.0), torch.rand(16)
    names = {"x": x, "y": y, "queue": queue, "caption_ids": torch.arange(16) // 2, "logit_scale": one, "scale": one}
    names |= {"log_q": many.log(), "w": many, "v": many, "g": 0.5, "nn": mmkernels.nn, "has_y": many > many.min()}
    names |= {name: importlib.import_module(f"mmkernels.{name}") for name in ("estimators", "models")}
    importlib.import_module("mmkernels.models.similarity")
    names |= {name: getattr(mmkernels, name) for name in mmkernels.__all__}
    budget = mmkernels.memory_budget()
    try:
        for call in calls:
            exec(call, names)
    finally:
        mmkernels.set_memory_budget(budget)


def test_formulas_are_rendered(site):
    in_pages = sum(len(re.findall(r"^\$\$$", page.read_text(), flags=re.MULTILINE)) // 2 for page in PAGES)
    in_docstrings = sum(len(re.findall(r"\.\. math::|:math:", value.__doc__)) for _, value in public_objects(mmkernels))
    assert sum(text.count("<math ") for text in site.values()) >= in_pages + in_docstrings
    for path, text in site.items():
        prose = re.sub(r"<(pre|code|script)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r"\.\. math|:math:|\$|\\[\[(]|arithmatex", prose), f"{path.name}: LaTeX is left over"


def test_nothing_is_fetched_from_elsewhere(site):
    for path, text in site.items():
        fetched = re.findall(r'<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)="(https?://[^"]*)"', text)
        assert not fetched, f"{path.name} fetches {fetched}"
