"""The README's example runs as it stands."""

import pathlib
import re

import torch

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples_run():
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert examples
    for example in examples:
        names = {}
        exec(example, names)
        assert names["loss"].isfinite()
        assert all(t.grad is not None for t in names.values() if isinstance(t, torch.Tensor) and t.is_leaf)
