"""The prediction's arithmetic, on code and launches small enough to work out by hand. Nothing is compiled."""

import re

import pytest
from typer.testing import CliRunner

from mmkernels import _predict
from mmkernels._predict import CLOCK, L2, MEMORY, MULTIPROCESSORS, TENSOR, Launch, Work

aot = pytest.importorskip("mmkernels.aot")

# A loop over tiles (0x10 ... 0xd0) around the product's (0x20 ... 0x40), a mask that few tiles need (0x70, 0x80), and
# code at the end that diverging warps alone reach.
CODE = """
    /*0000*/  S2R R0, SR_TID.X ;              /* 0x0000 */
    /*0010*/  CS2R R4, SRZ ;
    /*0020*/  LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
    /*0030*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
    /*0040*/  BRA !P4, 0x20 ;
    /*0050*/  FMUL R5, R24, UR4 ;
    /*0060*/  @P4 BRA P5, 0x90 ;
    /*0070*/  FSEL R5, R5, -INF , P1 ;
    /*0080*/  FSEL R6, R6, -INF , P1 ;
    /*0090*/  MUFU.EX2 R5, R5 ;
    /*00a0*/  FADD R7, R5, R7 ;
    /*00b0*/  BRA.DIV UR4, 0x110 ;
    /*00c0*/  MUFU.EX2 R6, R6 ;
    /*00c8*/  @P2 BRA 0xc0 ;
    /*00d0*/  @!P0 BRA 0x10 ;
    /*00e0*/  @P1 EXIT ;
    /*00f0*/  STG.E [R2], R7 ;
    /*0100*/  EXIT ;
    /*0110*/  WARPSYNC.COLLECTIVE R1 ;
    /*0120*/  BRA 0xc0 ;
    /*0130*/  BRA 0x130;
    /*0140*/  NOP ;
"""
FLOPS = 2 * 64 * 128 * 16
LAUNCH = Launch(
    "fwd", memory=3000, launches=4, programs=264, registers=255, shared=96 * 1024, tiles=2640, steps=12,
    operands=393216, step=Work(174, 0, 8 * FLOPS), tile=Work(3280, 192, 0),
)  # fmt: skip


def test_loops_and_the_common_way_are_found_in_the_code():
    # Outside the product's loop a tile takes 0x10, 0x50, 0x60, 0x90 ... 0xd0: the mask is jumped over.
    assert _predict.work(CODE) == (Work(3, 0, FLOPS), Work(9, 2, 0))


def test_a_program_without_a_loop_over_tiles_is_one_tile():
    code = CODE.replace("@!P0 BRA 0x10 ", "NOP ")
    assert _predict.work(code) == (Work(3, 0, FLOPS), Work(13, 2, 0))  # and 0x0, 0xe0 ... 0x100


def test_a_product_among_other_arithmetic_belongs_to_the_tile():
    code = CODE.replace("BRA !P4, 0x20 ", "NOP ")
    assert _predict.work(code) == (Work(), Work(12, 2, FLOPS))


def test_programs_share_a_multiprocessor_until_something_runs_out():
    assert LAUNCH.resident == 2  # 2 x 128 threads x 256 registers = 65,536; 2 x (96 + 1) KiB of 228
    assert Launch("", 0, num_warps=8, registers=180, shared=81 * 1024).resident == 1  # 256 x 184 registers
    assert Launch("", 0, num_warps=4, registers=33).resident == 12  # 128 x 40 registers
    assert Launch("", 0, shared=113 * 1024).resident == 2  # 114 KiB each
    assert Launch("", 0, shared=113 * 1024 + 512).resident == 1
    assert Launch("", 0, num_warps=8, registers=16).resident == 8  # 2,048 threads


def test_each_limit_alone():
    p = _predict.predict(LAUNCH)
    per_multiprocessor = 2640 / MULTIPROCESSORS  # 20 tiles; 264 programs fill the 2 x 132 places exactly
    assert p.alone == pytest.approx(
        {
            "tensor cores": 4 * 2640 * 12 * 8 * FLOPS / TENSOR,
            "exponentials": 4 * per_multiprocessor * 192 * 128 / 16 / CLOCK,
            "issue": 4 * per_multiprocessor * (12 * 174 + 3280) / CLOCK,  # four warps, four schedulers
            "L2": 4 * 2640 * 393216 / L2,
            "memory": 4 * 3000 / MEMORY,
        }
    )
    assert p.bound == "L2"


def test_overlapped_or_in_turn():
    p = _predict.predict(LAUNCH)
    after = 4 * 20 * 3280 / CLOCK
    assert p.best == pytest.approx(p.alone["L2"])
    assert p.in_turn == pytest.approx(p.alone["L2"] + after)
    alone = _predict.predict(Launch(**vars(LAUNCH) | {"shared": 200 * 1024, "programs": 132}))
    assert alone.best == alone.in_turn == pytest.approx(p.in_turn)


def test_eight_warps_issue_and_multiply_twice_as_much():
    four, eight = (_predict.predict(Launch(**vars(LAUNCH) | {"num_warps": n, "registers": 100})) for n in (4, 8))
    for limit in ("tensor cores", "exponentials", "issue"):
        assert eight.alone[limit] == pytest.approx(2 * four.alone[limit])


def test_a_last_wave_that_is_not_full_costs_a_whole_one():
    p = _predict.predict(Launch(**vars(LAUNCH) | {"programs": 265}))
    assert p.alone["issue"] == pytest.approx(_predict.predict(LAUNCH).alone["issue"] * 528 / 265)
    assert p.alone["memory"] == _predict.predict(LAUNCH).alone["memory"]


def test_the_table_adds_up():
    product = Launch("product by the library", memory=3 * 10**9, flops=2 * 798 * 10**9)  # 2 ms on tensor cores
    slow = Launch("copy", memory=6 * 10**9, launches=2)  # 4 ms
    text = _predict.table("Two kernels", [product, slow, Launch("copy", memory=3 * 10**9)])
    lines = text.splitlines()
    assert lines[0].startswith("Two kernels: a prediction for one H100")
    assert [line.split()[0] for line in lines[1:-1]] == ["kernel", "copy", "product"]
    assert re.split(r"\s{2,}", lines[2]) == [
        "copy",
        "3",
        "-",
        "0.00",
        "0.00",
        "0.00",
        "0.00",
        "5.00",
        "5.00",
        "5.00",
        "memory",
    ]
    assert "predicted sum: 7.0 ms" in lines[-1]


def test_the_command_says_prediction(monkeypatch, tmp_path):
    from mmkernels import cli

    asked = []
    monkeypatch.setattr(aot, "compile_kernels", lambda chips, names, quick, track: list(track([0], 1))[1:])
    monkeypatch.setattr(aot, "launches", lambda case: asked.append(case.D) or [LAUNCH])
    result = CliRunner().invoke(cli.app, ["compile", "--predict", "--out", str(tmp_path / "table.txt")])
    assert result.exit_code == 0, result.output
    assert "Compiling" in result.stderr
    assert result.stdout.count("a prediction for one H100") == 3
    assert asked == [768, 512, 128]
    assert "prediction" in (tmp_path / "table.txt").read_text()
    assert "prediction" not in CliRunner().invoke(cli.app, ["compile"]).stdout
