"""The command line, on a data set of a few icons."""

import importlib
import re
import sys

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

import mmkernels
from mmkernels import cli, data
from mmkernels._side_by_side import cost
from mmkernels.data import Icons, Split
from mmkernels.models._training import CHECKPOINT

run = CliRunner()


@pytest.fixture
def few_icons(monkeypatch):
    """40 random pictures with names of two words; 20 for training, 8 for validation, 12 for test."""
    images = torch.randint(0, 256, (40, 32, 32), dtype=torch.uint8)
    names = [f"thing{i % 5} kind{i}" for i in range(40)]
    icons = Icons(images, names, torch.zeros(40, dtype=torch.int64), ["one font"])
    monkeypatch.setattr(data, "load_icons", lambda: icons)
    monkeypatch.setattr(data, "split", lambda icons: Split(*torch.arange(40).split([20, 8, 12])))


def train(out, *options):
    return run.invoke(cli.app, ["train", "clip", "--out", str(out), "--device", "cpu", *options])


def plain(text):
    """Output without colours, boxes and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│┃╭╮╰╯─━]", " ", text).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["info", "train", "eval"]),
        (["train"], ["clip"]),
        (
            ["train", "clip"],
            ["--epochs", "--batch-size", "--lr", "--seed", "--out", "--resume", "runs/clip"],
        ),
        (["eval", "clip"], ["Directory of the run", "--device"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_help(arguments, words):
    result = run.invoke(cli.app, [*arguments, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(word in plain(result.output) for word in words)


def test_info():
    result = run.invoke(cli.app, ["info"])
    assert result.exit_code == 0
    for value in (mmkernels.__version__, torch.__version__, "64 MiB", "served on the CPU by"):
        assert value in result.output


def test_train_resume_and_eval(few_icons, tmp_path):
    out = tmp_path / "run"
    result = train(out, "--epochs", "2", "--batch-size", "10")
    assert result.exit_code == 0, result.output
    text = plain(result.output)
    assert "Training on 20 icons, validating on 8 others." in text
    assert re.search(r"epoch 2/2 loss \d\.\d+ temperature 0\.0\d+ recall@1/5/10 image to text", text)
    assert "12 held-out icons" in text
    assert "chance 8.3 % 41.7 % 83.3 %" in text
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT, cli.PICTURE]
    assert (out / cli.PICTURE).read_bytes().startswith(b"\x89PNG")

    (out / cli.PICTURE).unlink()
    table = text[text.index("12 held-out") :]
    result = run.invoke(cli.app, ["eval", "clip", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert plain(result.output) == table
    assert (out / cli.PICTURE).exists()

    result = train(out, "--resume")  # nothing left to do, whatever the options of the run were
    assert result.exit_code == 0, result.output
    assert table in plain(result.output)
    result = train(out, "--resume", "--epochs", "3")
    assert result.exit_code == 1
    assert "has epochs 2, not 3: resume it as it is, or start another run" in plain(result.output)

    result = train(out, "--epochs", "1")
    assert result.exit_code == 0
    assert "Replacing the run in" in plain(result.output)


def test_a_stopped_run_says_how_to_go_on(few_icons, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmkernels.models._training._save", stop)
    result = train(tmp_path)
    assert result.exit_code == 130
    assert "--resume` goes on" in plain(result.output)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "Invalid value for '--epochs'"),
        (["--batch-size", "one"], "Invalid value for '--batch-size'"),
        (["--lr", "-1"], "lr must be positive and finite, got -1.0"),
        (["--device", "tpu"], "--device must be cpu or cuda, got tpu"),
        (["--resume"], "does not exist: `mmkernels train clip --out"),
        (["--speed", "9"], "No such option: --speed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options(few_icons, tmp_path, options, message):
    result = train(tmp_path, *options)
    assert result.exit_code in (1, 2)
    assert message in plain(result.output)
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu(few_icons, tmp_path):
    result = train(tmp_path, "--device", "cuda")
    assert result.exit_code == 1
    assert "needs a GPU" in plain(result.output)


def test_a_missing_run(few_icons, tmp_path):
    result = run.invoke(cli.app, ["eval", "clip", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "does not exist: `mmkernels train clip" in plain(result.output)


@pytest.mark.parametrize("package", ["matplotlib", "safetensors.torch"])
def test_a_missing_extra(few_icons, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = train(tmp_path, "--epochs", "1")
    assert result.exit_code == 1
    assert f"{package} is missing: pip install 'mmkernels[train]'" in plain(result.output)
    assert not list(tmp_path.iterdir())


def test_without_typer_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "mmkernels.cli")
    with pytest.raises(SystemExit, match=r"typer is missing: pip install 'mmkernels\[train\]'"):
        importlib.import_module("mmkernels.cli")


def test_bench():
    text = plain(run.invoke(cli.app, ["bench", "--size", "300", "--features", "8", "--device", "cpu"]).output)
    assert "One loss step of 300 pairs, 8 features" in text
    for name in ("info_nce", "dense cross-entropy both ways"):
        assert re.search(rf"{name} \d+\.\d\d (\d+ MB|-)", text)


def test_bench_without_enough_memory():
    assert cost("dense cross-entropy both ways", 2_000_000, 1, torch.device("cpu")) is None
