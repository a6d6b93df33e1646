#!/usr/bin/env bash
# All that needs a GPU, in under nine minutes: assumptions, tests, benchmarks, tile tables.
#
#   bench/gpu.sh OUT_DIR [WHEEL_DIR]
#
# Runs in the Python that $PYTHON names (python3 unless set), which brings PyTorch, Triton, NumPy, pytest and
# pytest-benchmark; with pytest-xdist the tests compile side by side. Nothing is downloaded and nothing installed:
# wheels in WHEEL_DIR, of what is missing and of libraries to compare with, are unpacked into a temporary folder. A part
# that fails or runs out of its time costs the others nothing; the exit code is 1 if any did. OUT_DIR gets summary.txt,
# log.txt, benchmarks.json and tiles_<gpu>.json; `python -m bench report` makes the page and the pictures, anywhere.
set -u

if [[ $# -lt 1 || $# -gt 2 ]]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
python=${PYTHON:-python3}
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
wheels=${2:+$(realpath -m "$2")}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "bench/gpu.sh needs a CUDA GPU, and the PyTorch of $python sees none. Without one: make test, make bench." >&2
  exit 2
fi

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
export PYTHONPATH="$temporary/wheels:$PWD" PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
export TRITON_CACHE_DIR="$temporary/triton" TORCHINDUCTOR_CACHE_DIR="$temporary/inductor"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # other plugins' warnings are no errors of ours
: >"$out/summary.txt"
: >"$out/log.txt"
failed=0

# part NAME SECONDS COMMAND...: run it; interrupted when its time is over, pytest still writes what it has.
part() {
  local name=$1 seconds=$2 start=$SECONDS code status=ok
  shift 2
  timeout --signal=INT --kill-after=12 "$seconds" "$@" >"$temporary/$name.log" 2>&1 &
  { wait $!; } 2>/dev/null
  code=$?
  case $code in
    0) ;;
    124) status="out of time" ;;
    137) status="killed" ;; # out of time and deaf, or out of memory
    *) status="failed" ;;
  esac
  [[ $code == 0 ]] || failed=1
  printf '%-12s %-12s %4d s of %d\n' "$name" "$status" $((SECONDS - start)) "$seconds" | tee -a "$out/summary.txt"
  { printf '\n== %s: %s\n' "$name" "$status"; tail -c 150000 "$temporary/$name.log"; } >>"$out/log.txt"
  { printf '\n== %s: %s\n' "$name" "$status"; tail -n 45 "$temporary/$name.log" | cut -c -300; } >>"$temporary/tails"
}

if [[ -n $wheels ]]; then
  part wheels 15 "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$temporary/wheels" "$wheels"/*.whl
fi
xdist=()
"$python" -c 'import xdist' 2>/dev/null && xdist=(-p xdist.plugin -n 8)

part assumptions 30 "$python" -m bench.assumptions
part tests 130 "$python" -m pytest -p no:cacheprovider ${xdist[@]+"${xdist[@]}"} -vv --tb=short -rfEs \
  --durations=10 tests/ops tests/test_nn.py tests/test_contract.py tests/test_contract_kernels.py
part benchmarks 175 "$python" -m pytest -p no:cacheprovider -p pytest_benchmark.plugin --tb=short -rfEs \
  bench/ops --bench-untested --bench-seconds 155 --benchmark-json "$out/benchmarks.json"
part tiles 100 "$python" -m bench.tune "$out"

cat "$temporary/tails" >>"$out/summary.txt"
cat "$out/summary.txt"
exit $failed
