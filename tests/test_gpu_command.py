"""`bench/gpu.sh` with quick stand-ins for its parts."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "gpu.sh"

# A Python that has a GPU and does every part in no time. PART_<name> holds what a part does instead, in shell.
PYTHON = """#!/bin/sh
case "$*" in
  *is_available*) exit ${CUDA-0} ;;
  *"import xdist"*) exit 1 ;;
  *"pip install"*) part=wheels ;;
  *bench.assumptions*) part=assumptions ;;
  *bench/ops*) part=benchmarks ;;
  *bench.tune*) part=tiles; for out; do :; done; echo '{}' >"$out/tiles_stand_in.json" ;;
  *pytest*) part=tests ;;
esac
if [ $part = benchmarks ]; then for json; do :; done; echo '{}' >"$json"; fi
eval "code=\\${PART_$part-}"
echo "$part: $*"
eval "$code"
"""

# Every part has half a second.
TIMEOUT = """#!/bin/sh
shift 3
exec REAL_TIMEOUT --signal=INT --kill-after=0.5 0.5 "$@"
"""


@pytest.fixture
def gpu(tmp_path):
    """Run the script on the stand-ins; the finished process and the directory of the results."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    real = subprocess.run(["sh", "-c", "command -v timeout"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "timeout").write_text(TIMEOUT.replace("REAL_TIMEOUT", real))
    (tmp_path / "timeout").chmod(0o755)

    def run(*arguments, quick=True, **environment):
        path = f"{tmp_path}:{os.environ['PATH']}" if quick else os.environ["PATH"]
        environment = (
            os.environ | {"PATH": path, "PYTHON": str(tmp_path / "python"), "TMPDIR": str(tmp_path)} | environment
        )
        arguments = arguments or (tmp_path / "out",)
        done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        assert not list(tmp_path.glob("tmp.*")), "temporary files are left"
        return done, tmp_path / "out"

    return run


def statuses(done):
    return dict(re.findall(r"^(\w+) +(ok|failed|out of time|killed) +\d+ s of \d+$", done.stdout, flags=re.MULTILINE))


def test_every_part_runs_in_turn(gpu):
    done, out = gpu()
    assert done.returncode == 0
    assert done.stderr == ""
    assert statuses(done) == dict.fromkeys(("assumptions", "tests", "benchmarks", "tiles"), "ok")
    assert {path.name for path in out.iterdir()} == {
        *("summary.txt", "log.txt", "benchmarks.json", "tiles_stand_in.json")
    }
    assert done.stdout.endswith((out / "summary.txt").read_text())
    assert "== tiles: ok" in (out / "summary.txt").read_text()
    tested = "tests/ops tests/test_nn.py tests/test_contract.py tests/test_contract_kernels.py\n"
    assert tested in (out / "log.txt").read_text()


def test_a_failing_part_costs_the_others_nothing(gpu):
    done, out = gpu(PART_tests="seq 1000; echo 'one test failed'; exit 1")
    assert done.returncode == 1
    assert statuses(done) == dict.fromkeys(("assumptions", "benchmarks", "tiles"), "ok") | {"tests": "failed"}
    assert "one test failed" in (out / "summary.txt").read_text()
    assert "\n900\n" not in (out / "summary.txt").read_text()
    assert "\n900\n" in (out / "log.txt").read_text()


@pytest.mark.parametrize(
    ("command", "status"),
    [("sleep 20 & wait", "out of time"), ("trap '' INT; while :; do sleep 0.1; done", "killed")],
    ids=["hangs", "is deaf"],
)
def test_a_part_ends_with_its_time(command, status, gpu):
    start = time.monotonic()
    done, out = gpu(PART_benchmarks=command)
    assert time.monotonic() - start < 15
    assert done.returncode == 1
    assert statuses(done)["benchmarks"] == status
    assert statuses(done)["tiles"] == "ok"
    assert (out / "benchmarks.json").exists()


def test_output_is_cut_to_size(gpu):
    done, out = gpu(**dict.fromkeys(("PART_tests", "PART_tiles"), "head -c 2000000 /dev/zero | tr '\\0' x"))
    assert done.returncode == 0
    assert (out / "log.txt").stat().st_size < 1_000_000
    assert (out / "summary.txt").stat().st_size < 10_000


def test_wheels_are_unpacked_for_the_run_alone(gpu, tmp_path):
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "peer-1.0-py3-none-any.whl").touch()
    done, out = gpu(tmp_path / "out", tmp_path / "peers", PART_tests='echo "$PYTHONPATH"')
    assert statuses(done)["wheels"] == "ok"
    log = (out / "log.txt").read_text()
    target, wheel = re.search(r"--no-index --no-deps --no-compile --target (\S+) (\S+)", log).groups()
    assert wheel.endswith("/peers/peer-1.0-py3-none-any.whl")
    assert f"\n{target}:{SCRIPT.parent.parent}\n" in log


def test_missing_wheels_cost_the_peers_alone(gpu, tmp_path):
    done, _ = gpu(tmp_path / "out", tmp_path / "nothing", PART_wheels='for w; do :; done; test -e "$w"')
    assert done.returncode == 1
    assert statuses(done) == dict.fromkeys(("assumptions", "tests", "benchmarks", "tiles"), "ok") | {"wheels": "failed"}


def test_without_a_gpu_nothing_runs(gpu):
    done, out = gpu(CUDA="1")
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr
    assert not list(out.iterdir())


def test_without_arguments_it_says_how_it_is_used(tmp_path):
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "bench/gpu.sh OUT_DIR [WHEEL_DIR]" in done.stderr


def test_all_budgets_end_within_nine_minutes():
    budgets = [int(seconds) for seconds in re.findall(r"^ *part \w+ (\d+) ", SCRIPT.read_text(), flags=re.MULTILINE)]
    grace = int(re.search(r"--kill-after=(\d+)", SCRIPT.read_text())[1])
    assert len(budgets) == 5
    assert sum(budgets) + grace * len(budgets) + 10 < 9 * 60
