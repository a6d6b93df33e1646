"""What covariance, whitening and CCA promise beside their numbers: operators, torch.compile, autocast, processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import mmkernels
from mmkernels.ops.cca import OBJECTIVES
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="float64 goes by tiles, and tracing does not enter the interpreter")


@pytest.mark.parametrize(
    ("factors", "autocast"), [(None, False), ((1, 1), False), ((2, 1), False), ((1, 3), False), ((2, 3), True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_operators(dtype, factors, autocast, device):
    views = [torch.randn(2, 9, d, device=device, dtype=dtype) for d in (3, 1, 4)]
    wide = torch.promote_types(dtype, torch.float32)
    shift = torch.randn(2, 8, device=device, dtype=wide)
    f = None if factors is None else torch.rand(*factors, 9, device=device, dtype=wide)
    with torch.autocast(device.type, enabled=autocast):
        scatter, sums = torch.ops.mmkernels.covariance_fwd(views, shift, f)
        assert scatter.dtype == sums.dtype == wide
        checked = torch.library.opcheck(torch.ops.mmkernels.covariance_fwd.default, (views, shift, f))
        for needs in ([True] * 3, [False, True, False]):
            arguments = (views, shift, f, scatter, sums, needs)
            checked |= torch.library.opcheck(torch.ops.mmkernels.covariance_bwd.default, arguments)
    assert set(checked.values()) == {"SUCCESS"}


def covariance_step(x, y):
    return mmkernels.covariance(x, y).cov.square().sum()


def weighted_step(x, y):
    weights, present = x[:, 0].sigmoid(), [x[:, 0] < 1, None]
    return mmkernels.covariance(x, y, weights=weights, present=present, groups=2).cov.square().sum()


def correlation_step(x, y):
    return mmkernels.canonical_correlations(x, y, reg=0.1).sum()


STEPS = {
    "covariance": covariance_step,
    "weights": weighted_step,
    "correlations": correlation_step,
    "whiten": lambda x, y: (mmkernels.whiten(x, reg=0.1) * y[:, :1]).sin().sum(),
    "gcca": lambda x, y: mmkernels.gcca_loss([x, y], 2, 0.1),
    "barlow": lambda x, y: mmkernels.barlow_twins_loss(x, x + y[:, :1]),
    "vicreg": lambda x, y: mmkernels.vicreg_loss(x, x + y[:, :1]),
} | {objective: lambda x, y, o=objective: mmkernels.cca_loss(x, y, reg=0.1, objective=o) for objective in OBJECTIVES}


@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "aot_eager") for name in STEPS if name not in ("correlations", "vicreg")]
    + [("covariance", "inductor"), ("sum", "inductor")],
)
def test_compile(name, backend, device):
    torch._dynamo.reset()
    step = STEPS[name]
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for N in (16, 24, 40):
        x, y = (torch.randn(N, d, device=device, requires_grad=True) for d in (6, 4))
        wanted, got = step(x, y), compiled(x, y)
        torch.testing.assert_close(got, wanted)
        for a, b in zip(
            torch.autograd.grad(got, (x, y), allow_unused=True),
            torch.autograd.grad(wanted, (x, y), allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_torch_func(name, device):
    x, y = (torch.randn(20, d, dtype=torch.float64, device=device, requires_grad=True) for d in (6, 4))
    wanted = torch.autograd.grad(STEPS[name](x, y), (x, y))
    got = torch.func.grad(STEPS[name], (0, 1))(x.detach(), y.detach())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_by_torch_func(device):
    x, y = (torch.randn(8, d, dtype=torch.float64, device=device) for d in (2, 3))
    for step in (covariance_step, STEPS["sum_squares"]):
        H = torch.func.jacrev(torch.func.grad(step), chunk_size=1)(x, y)
        leaf = x.clone().requires_grad_()
        wanted = torch.autograd.functional.hessian(lambda x, step=step: step(x, y), leaf)
        torch.testing.assert_close(H, wanted)


def values(x, y, present, weights):
    """What every public function returns for two views, by name."""
    three = [x, y, x[:, :2]]
    S = mmkernels.covariance(x)
    out = {
        "covariance": mmkernels.covariance(x, y).cov,
        "weights": mmkernels.covariance(x, y, weights=weights, present=present).cov,
        "n": mmkernels.covariance(x, y, weights=weights, present=present).n,
        "correlations": mmkernels.canonical_correlations(x, y),
        "gcca": mmkernels.gcca_loss(three),
        "mcca": mmkernels.mcca_loss(three),
        "barlow": mmkernels.barlow_twins_loss(x[:, :4], y),
        "vicreg": mmkernels.vicreg_loss(x[:, :4], y),
        "sdl": mmkernels.sdl_loss(x[:, :4], y),
        "few rows": mmkernels.barlow_twins_loss(x[:3, :4], y[:3]),
        "steps": mmkernels.inverse_sqrt(S.cov, "newton_schulz", iterations=5),
    }
    out |= {o: mmkernels.cca_loss(x, y, objective=o) for o in OBJECTIVES}
    out |= {m: mmkernels.whiten(x, m) for m in ("zca", "zca_cor", "pca", "cholesky")}
    out |= {f"inverse {m}": mmkernels.inverse_sqrt(S.cov, m) for m in ("eigh", "newton_schulz", "cholesky")}
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype, device):
    """Statistics are float32 work: the results are those without autocast, to the bit."""
    x = torch.randn(600, 5, device=device)
    y = (x[:, :4] + torch.randn(600, 4, device=device)).to(dtype).requires_grad_()
    x = x.to(dtype).requires_grad_()
    present, weights = [torch.rand(600, device=device) < 0.7, None], torch.rand(600, device=device)
    wanted = values(x, y, present, weights)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = values(x, y, present, weights)
    for name, t in got.items():
        assert t.dtype == (dtype if name in ("zca", "zca_cor", "pca", "cholesky") else torch.float32), name
        assert torch.equal(t, wanted[name]), name
    for name, t in got.items():
        if t.requires_grad and name not in ("steps",):
            for a, b in zip(
                *(torch.autograd.grad(v.sum(), x, retain_graph=True) for v in (t, wanted[name])), strict=True
            ):
                assert torch.equal(a, b), name


LOSSES = {
    "cca": lambda v, **o: mmkernels.cca_loss(v[0], v[1], reg=(0.1, 0.2), **o),
    "squares": lambda v, **o: mmkernels.cca_loss(v[0], v[1], objective="sum_squares", shrinkage="oas", **o),
    "information": lambda v, **o: mmkernels.cca_loss(v[0], v[1], objective="gaussian_mi", reg=0.1, **o),
    "correlations": lambda v, **o: mmkernels.canonical_correlations(v[0], v[1], 2, reg=0.1, **o).sum(),
    "covariance": lambda v, **o: mmkernels.covariance(*v, **o).cov.square().mean(),
    "gcca": lambda v, **o: mmkernels.gcca_loss(v, 2, 0.1, **o),
    "mcca": lambda v, **o: mmkernels.mcca_loss(v, 2, 0.1, **o),
    "barlow": lambda v, **o: mmkernels.barlow_twins_loss(v[0], v[1], **o),
    "vicreg": lambda v, **o: mmkernels.vicreg_loss(v[0], v[1], **o),
    "sdl": lambda v, **o: mmkernels.sdl_loss(v[0], v[1], **o),
}
WITH_WEIGHTS = ("cca", "covariance", "gcca")


def encode(views, matrix):
    return [v @ matrix + (v @ matrix).sin() for v in views]


def losses(views, matrix, weights, present, group=None):
    """Each loss and the gradient of the shared matrix."""
    encoded = encode(views, matrix)
    out = {name: loss(encoded, group=group) for name, loss in LOSSES.items()}
    out |= {f"{name} weighted": LOSSES[name](encoded, group=group, weights=weights) for name in WITH_WEIGHTS}
    out["covariance masked"] = LOSSES["covariance"](encoded, group=group, present=present)
    out["cca masked"] = LOSSES["cca"](encoded, group=group, present=present[:2])
    return {k: (t.item(), torch.autograd.grad(t, matrix, retain_graph=True)[0]) for k, t in out.items()}


def _worker(rank, rendezvous, cuts, views, matrix, weights, present, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(cuts))
    own = cuts[rank]
    arguments = ([v[own] for v in views], matrix, weights[own], [None if p is None else p[own] for p in present])
    out = losses(*arguments, group=dist.group.WORLD)
    running = mmkernels.RunningCovariance()
    if rank:  # the first process has seen nothing
        running.update(*arguments[0], weights=arguments[2], present=arguments[3])
    running.all_reduce()
    out["running"] = running.covariance(0).cov.tolist()
    results.put({k: v if k == "running" else (v[0], v[1].tolist()) for k, v in out.items()})
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_process_groups(world, tmp_path):
    """The loss of processes is that of all their rows, and so is the mean of their gradients; uneven parts too."""
    N = 9 * world + 4
    views = [torch.randn(N, 5, dtype=torch.float64) for _ in range(3)]
    matrix = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weights, mask = torch.rand(N, dtype=torch.float64) + 0.1, torch.rand(N) < 0.8
    present = [mask, None, None]
    cuts = [slice(9 * k, 9 * k + 9 if k < world - 1 else N) for k in range(world)]
    wanted = losses(views, matrix, weights, present)
    context = mp.get_context("spawn")
    results = context.Queue()
    arguments = (tmp_path / "rendezvous", cuts, views, matrix.detach().requires_grad_(), weights, present, results)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(world)]
    for w in workers:
        w.start()
    got = [results.get(timeout=120) for _ in workers]
    for w in workers:
        w.join(timeout=60)
        assert w.exitcode == 0
    for name, (value, gradient) in wanted.items():
        for out in got:
            assert out[name][0] == pytest.approx(value, rel=1e-9), name
        mean = sum(torch.tensor(out[name][1], dtype=torch.float64) for out in got) / world
        assert (mean - gradient).norm() <= 1e-7 * gradient.norm(), name
    rest = slice(9, None)
    seen = mmkernels.covariance(
        *(v[rest] for v in views), weights=weights[rest], present=[mask[rest], None, None], correction=0
    )
    for out in got:
        torch.testing.assert_close(torch.tensor(out["running"], dtype=torch.float64), seen.cov)
        assert out["running"] == got[0]["running"]


def test_compile_of_several_views_without_gradients(device):
    x, y = (torch.randn(50, 2, device=device) for _ in "xy")
    for function in (
        lambda a, b: mmkernels.covariance(a, b).cov,
        lambda a, b: mmkernels.mutual_information(a, b, "gaussian"),
        lambda a, b: mmkernels.cca_loss(a, b),
    ):
        torch.testing.assert_close(torch.compile(function, backend="aot_eager")(x, y), function(x, y))
