"""Imports go one way, and importing mmkernels is cheap: no Triton, no GPU, no extra."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import mmkernels

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = {
    "reference": set(),
    "kernels": {"kernels"},
    "tiled": {"tiled"},
    "_dispatch": {"kernels", "tiled"},
    "_check": set(),
    "autograd": {"_dispatch", "tiled"},
    "ops": {"ops", "autograd", "_dispatch", "_check"},
    "nn": {"_check", "ops"},
    "distributed": {"ops"},
    "estimators": {"_check", "estimators", "ops"},
    "integrations": {"ops", "nn", "distributed"},
    "data": {"data"},
    "models": {"_check", "models", "ops", "nn", "data"},
    "_memory": set(),
    "_side_by_side": {"ops", "_memory"},
    "_cases": {"kernels"},
    "_predict": set(),
    "aot": {"kernels", "_cases", "_predict"},
}


def room(module):
    """'mmkernels.ops.contrastive' -> 'ops'; 'reference.contrastive' -> 'reference'; 'mmkernels' -> ''."""
    parts = module.split(".")
    return parts[0] if parts[0] == "reference" else (parts[1] if len(parts) > 1 else "")


def imports(path):
    """The modules of this project that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module]
            if node.module == "mmkernels":
                names = [f"mmkernels.{a.name}" for a in node.names]
        else:
            continue
        yield from (n for n in names if n.split(".")[0] in ("mmkernels", "reference"))


def files():
    for path in [*ROOT.glob("mmkernels/**/*.py"), *ROOT.glob("reference/**/*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield room(module.removesuffix(".__init__")), path


@pytest.mark.parametrize("name", ROOMS)
def test_imports_go_one_way(name):
    for where, path in files():
        if where != name:
            continue
        for module in imports(path):
            assert room(module) in ROOMS[name] | {name}, f"{path.relative_to(ROOT)} imports {module}"


def test_every_file_belongs_to_a_room():
    free = {"", "__init__", "cli"}  # the package's own file and the command line may import everything
    assert {where for where, _ in files()} <= set(ROOMS) | free


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): n for _, p in files() if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_import_needs_no_triton_and_no_extra():
    """The dense formula's users import mmkernels on machines that have torch and nothing else."""
    code = """
import sys
blocked = ("triton", "typer", "rich", "PIL", "matplotlib", "safetensors", "sklearn")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import torch, mmkernels
x = torch.randn(8, 4, requires_grad=True)
mmkernels.info_nce(x, torch.randn(8, 4)).backward()
print(sorted(m for m in sys.modules if m.startswith("mmkernels.kernels")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_import_takes_at_most_50_ms():
    """By -X importtime, self time of this package's modules, with those of the loss; torch's own time is torch's."""
    best = min(_import_milliseconds() for _ in range(3))
    assert best <= 50


def _import_milliseconds():
    program = "import torch, mmkernels; mmkernels.info_nce"
    command = [sys.executable, "-X", "importtime", "-c", program]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stderr.splitlines()
    rows = [re.match(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)", line) for line in lines]
    own = [int(r[1]) for r in rows if r and r[4].split(".")[0] == "mmkernels"]
    assert own
    return sum(own) / 1000


def test_type_checkers_see_what_is_public():
    source = (ROOT / "mmkernels/__init__.py").read_text()
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    names = [alias.asname for statement in block.body for alias in statement.names]
    assert sorted(names) == sorted(mmkernels.__all__)
    for name in names:
        assert getattr(mmkernels, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'infonce'"):
        mmkernels.infonce  # noqa: B018
