"""Predict from a kernel's machine code and its launches what bounds it on an H100, and how long it takes.

A roofline with more than two roofs: a multiprocessor multiplies on tensor cores, takes exponentials, issues
instructions and reads operands through the L2 cache at the rates below; what takes longest is the bound. There are two
times: 'best', where all of that overlaps, and 'in turn', where a tile's product ends before what follows it begins.
Programs that share a multiprocessor can overlap; one that is alone on its own cannot, so its best is in turn. Latency,
barriers, bank conflicts and PyTorch's work on vectors are not modelled: expect more, and believe a measurement instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import ceil
from typing import NamedTuple

CHIP = "sm_90"

# An H100 SXM. "Measured" is on one; the rest is NVIDIA's: the H100 datasheet and Hopper tuning guide, and the table of
# arithmetic throughput in the CUDA C++ programming guide.
MULTIPROCESSORS = 132
REGISTERS = 65536  # of a multiprocessor, 4 bytes each
SHARED = 228 * 1024  # bytes of a multiprocessor, of which every resident program takes 1 KiB more than its own
THREADS = 2048  # resident on a multiprocessor
SCHEDULERS = 4  # of a multiprocessor; each issues one instruction of one warp of 32 threads a clock
EXPONENTIALS = 16  # a clock and multiprocessor
GROUP = 4  # warps that multiply together
CLOCK = 1.7e9  # Hz: 132 x 16 exponentials a clock are then about 3.6e12 a second; the datasheet's boost is above it
TENSOR = 798e12  # bf16 FLOP/s, measured for cuBLAS on a product of 8192^3 random numbers; the datasheet says 989e12
L2 = 5120 * CLOCK  # bytes/s; 5,120 a clock is the A100 white paper's number, none is published for the H100
MEMORY = 3.0e12  # bytes/s, reads and writes together, measured for a device-to-device copy


class Work(NamedTuple):
    """What one pass through a piece of code costs a warp; a product's flops are those of its group of four warps."""

    issued: int = 0
    exponentials: int = 0
    flops: int = 0


NOTHING = Work()


@dataclass(frozen=True)
class Launch:
    """Launches of a kernel that are alike, or of the library's product, which is given by its flops alone."""

    kernel: str
    memory: int  # bytes of the tensors it is given, each read or written once
    launches: int = 1
    flops: int = 0  # of a library product
    programs: int = 1
    num_warps: int = 4
    registers: int = 0
    shared: int = 0
    tiles: int = 0  # pairs of BLOCK_M rows and BLOCK_N columns; 0: the kernel multiplies no matrices
    steps: int = 0  # of the product's loop per tile
    operands: int = 0  # bytes a tile reads of x and y
    step: Work = NOTHING
    tile: Work = NOTHING  # what a tile does outside the product's loop

    @property
    def resident(self) -> int:
        """How many programs a multiprocessor holds."""
        threads = 32 * self.num_warps
        registers = 8 * ceil(self.registers / 8) * threads
        return min(REGISTERS // max(1, registers), SHARED // (self.shared + 1024), THREADS // threads)


class Prediction(NamedTuple):
    """Seconds that launches take together."""

    alone: dict[str, float]  # by limit of the chip, as if there were no other
    best: float
    in_turn: float

    @property
    def bound(self) -> str:
        """The limit that asks for the most time."""
        return max(self.alone, key=lambda limit: self.alone[limit])

    def plus(self, other: Prediction) -> Prediction:
        """The two one after the other."""
        alone = {limit: seconds + other.alone[limit] for limit, seconds in self.alone.items()}
        return Prediction(alone, self.best + other.best, self.in_turn + other.in_turn)


def predict(launch: Launch) -> Prediction:
    """Return the time that each limit of the chip asks for, and that of the whole."""
    slots = MULTIPROCESSORS * max(1, launch.resident)
    # Programs run in waves, and the last wave leaves multiprocessors idle.
    tiles = launch.tiles * ceil(launch.programs / slots) * slots / launch.programs
    clocks = MULTIPROCESSORS * CLOCK  # all multiprocessors' clocks a second
    loop_issue = tiles * launch.steps * launch.step.issued * launch.num_warps / (SCHEDULERS * clocks)
    tile_issue = tiles * launch.tile.issued * launch.num_warps / (SCHEDULERS * clocks)
    tile_flops = (launch.steps * launch.step.flops + launch.tile.flops) * launch.num_warps / GROUP
    alone = {
        "tensor cores": (tiles * tile_flops + launch.flops) / TENSOR,
        "exponentials": tiles * launch.tile.exponentials * 32 * launch.num_warps / (EXPONENTIALS * clocks),
        "issue": loop_issue + tile_issue,
        "L2": tiles * launch.operands / L2,
        "memory": launch.memory / MEMORY,
    }
    product = max(alone["tensor cores"], alone["L2"], loop_issue)
    in_turn = max(product + max(alone["exponentials"], tile_issue), alone["memory"])
    best = max(alone.values()) if launch.resident > 1 else in_turn
    n = launch.launches
    return Prediction({limit: n * seconds for limit, seconds in alone.items()}, n * best, n * in_turn)


def _instructions(code: str) -> list[tuple[int, str]]:
    """Address and text of every instruction in the output of `cuobjdump -sass`."""
    return [(int(a, 16), text) for a, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", code)]


def _successors(program: list[tuple[int, str]]) -> list[list[int]]:
    """Where control goes after each instruction. Branches that diverging warps alone take are never taken here."""
    index = {address: i for i, (address, _) in enumerate(program)}
    after = []
    for i, (_, text) in enumerate(program):
        branch = re.fullmatch(r"(@\S+ )?BRA(?:\.U)? (!?U?P\d, )?(0x[0-9a-f]+)", text)
        if branch:
            after.append([index[int(branch[3], 16)]] + ([i + 1] if branch[1] or branch[2] else []))
        else:
            after.append([] if text == "EXIT" else [i + 1])
    return after


def _shortest(after: list[list[int]], first: int, last: int) -> list[int]:
    """The fewest instructions that lead forward from first to last, both included; empty if none do."""
    length, before = {first: 1}, {first: first}
    for i in range(first, last):
        for j in after[i] if i in length else ():
            if i < j <= last and length[i] + 1 < length.get(j, len(after) + 1):
                length[j], before[j] = length[i] + 1, i
    path = [last] if last in length else []
    while path and path[-1] != first:
        path.append(before[path[-1]])
    return path[::-1]


def _arithmetic(program: list[tuple[int, str]], path: Sequence[int]) -> bool:
    return any(re.search(r"\bF(ADD|MUL|FMA|MNMX)\b", program[i][1]) for i in path)


def _work(program: list[tuple[int, str]], path: Sequence[int]) -> Work:
    texts = [program[i][1] for i in path]
    shapes = [re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", text) for text in texts]
    flops = sum(2 * int(s[1]) * int(s[2]) * int(s[3]) for s in shapes if s)
    return Work(len(texts), sum("MUFU" in text for text in texts), flops)


def work(code: str) -> tuple[Work, Work]:
    """Count along the shortest way through sm_90 code: a step of the product's loop, and a tile outside that loop.

    The shortest way is the common one: masks and the fallbacks for far-apart log-sum-exps are branches that cost more.
    Where no loop multiplies and does nothing else, the step is empty: the product is the tile's.
    """
    program = _instructions(code)
    after = _successors(program)
    # Loops, the inner ones first. A jump backward that control does not come round to is no loop.
    ways = [_shortest(after, min(to), i) for i, to in enumerate(after) if to and min(to) < i]
    loops = sorted((way for way in ways if way), key=lambda way: way[-1] - way[0])
    products = [way for way in loops if _work(program, way).flops and not _arithmetic(program, way)]
    step = products[0] if products else []
    exits = [i for i, (_, text) in enumerate(program) if text == "EXIT"]
    if step:
        around = [way for way in loops if way[0] <= step[0] and step[-1] <= way[-1] and way is not step]
    else:
        around = [way for way in loops if _work(program, way).flops]
    tile = (around or [_shortest(after, 0, exits[-1])])[0]  # no loop over tiles: a program is one tile
    return _work(program, step), _work(program, [i for i in tile if not step or not step[0] <= i <= step[-1]])


def table(title: str, launches: Sequence[Launch]) -> str:
    """Render the prediction of launches that follow one another as text, a line a kernel."""
    lines: list[tuple[str, ...]] = []
    total = reduce(Prediction.plus, map(predict, launches))
    for kernel, group in groupby(sorted(launches, key=lambda launch: launch.kernel), key=lambda launch: launch.kernel):
        same = list(group)
        p = reduce(Prediction.plus, map(predict, same))
        resident = str(min(launch.resident for launch in same)) if same[0].tiles else "-"
        times = (f"{1e3 * seconds:.2f}" for seconds in (*p.alone.values(), p.best, p.in_turn))
        lines.append((kernel, str(sum(launch.launches for launch in same)), resident, *times, p.bound))
    lines.sort(key=lambda line: -float(line[-2]))
    lines.insert(0, ("kernel", "launches", "resident", *total.alone, "best", "in turn", "bound"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    best, in_turn = 1e3 * total.best, 1e3 * total.in_turn
    return "\n".join(
        [
            f"{title}: a prediction for one H100, in ms; nothing here was measured",
            *rows,
            f"predicted sum: {best:.1f} ms if products overlap with what follows them, {in_turn:.1f} ms if not",
        ]
    )
