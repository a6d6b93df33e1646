"""What every reduction promises beside its numbers: derivatives, torch.compile, operators, several processes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

import mmkernels
from mmkernels.autograd.logsumexp import logsumexp
from reference import contrastive as reference
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="float64 goes by tiles, and tracing does not enter the interpreter")


def doubles(device, *shapes):
    return [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("offset", [None, 1])
@pytest.mark.parametrize("with_ids", [False, True])
def test_first_and_second_derivatives(offset, with_ids, device):
    tensors = doubles(device, (5, 3), (7, 3), (), (7,))
    ids = (torch.tensor([0, 1, 1, 2, 3], device=device), torch.tensor([1, 0, 0, 2, 5, 1], device=device))

    def function(x, y, scale, log_weights):
        return mmkernels.logsumexp_scores(
            x, y, scale, log_weights=log_weights, ids=ids if with_ids else None, offset=offset
        )

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize(
    "options",
    [{}, {"symmetric": False}, {"exclude_positive": True}, {"label_smoothing": 0.1}, {"reduction": "none"}],
    ids=str,
)
def test_derivatives_of_info_nce(options, device):
    tensors = doubles(device, (4, 3), (4, 3), (), (2, 3), (6,))

    def function(x, y, scale, negatives, log_weights):
        return mmkernels.info_nce(x, y, scale=scale.exp(), negatives=negatives, log_weights=log_weights, **options)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_second_derivative_where_a_row_has_nothing_left(device):
    x, y, scale = doubles(device, (4, 3), (4, 3), ())
    ids = torch.tensor([0, 0, 0, 0], device=device), torch.tensor([0, 0, 0, 0], device=device)
    loss = mmkernels.info_nce(x, y, scale=scale.exp(), ids=ids)
    first = torch.autograd.grad(loss, (x, y), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, y, scale))
    assert all((g == 0).all() for g in (*first, *second))


def test_third_derivative(device):
    """Beyond second order the formula is differentiated by autograd itself."""
    x, y = doubles(device, (4, 3), (4, 3))
    s = torch.tensor(1.5, dtype=torch.float64, device=device, requires_grad=True)

    def third(loss):
        for _ in range(3):
            (loss,) = torch.autograd.grad(loss, s, create_graph=True)
        return loss

    torch.testing.assert_close(third(mmkernels.info_nce(x, y, scale=s)), third(reference.info_nce(x, y, s)))


def test_positives_in_a_second_derivative(device):
    x, y, scale = doubles(device, (3, 2), (5, 2), ())
    assert torch.autograd.gradgradcheck(lambda *t: logsumexp(*t, offset=2)[2], (x, y, scale))


def test_torch_func(device):
    x, y = (t.detach() for t in doubles(device, (9, 4), (9, 4)))
    s = torch.tensor(2.0, dtype=torch.float64, device=device)

    def ours(x, s):
        return mmkernels.info_nce(x, y, scale=s)

    def dense(x, s):
        return reference.info_nce(x, y, s)

    for argnum in (0, 1):
        torch.testing.assert_close(torch.func.grad(ours, argnum)(x, s), torch.func.grad(dense, argnum)(x, s))

    def twice(f):
        return torch.func.grad(lambda s: torch.func.grad(f)(x, s).square().sum())(s)

    torch.testing.assert_close(twice(ours), twice(dense))


def test_vmap_is_refused(device):
    x = torch.randn(2, 5, 3, device=device)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(mmkernels.info_nce)(x, x)


def operator_arguments(device, dtype, keep):
    x, y = torch.randn(9, 5, device=device, dtype=dtype), torch.randn(12, 5, device=device, dtype=dtype)
    ids = torch.randint(0, 4, (9,), device=device), torch.randint(0, 4, (11,), device=device)
    wide = torch.promote_types(dtype, torch.float32)
    log_weights = torch.randn(12, device=device, dtype=wide)
    return x, y, torch.tensor(2.0, device=device, dtype=wide), log_weights, *ids, 3, True, keep


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_operators(dtype, keep, autocast, device):
    if keep and device.type == "cuda":
        pytest.skip("kernels recompute the scores")
    arguments = operator_arguments(device, dtype, keep)
    with torch.autocast(device.type, enabled=autocast):
        rows, columns, positives, _, _, scores = torch.ops.mmkernels.logsumexp_fwd(*arguments)
        checked = torch.library.opcheck(torch.ops.mmkernels.logsumexp_fwd.default, arguments)
        for needs in ([True] * 4, [False, True, False, True]):
            backward = (*arguments[:7], rows, columns, scores, rows, columns, positives, needs)
            checked |= torch.library.opcheck(torch.ops.mmkernels.logsumexp_bwd.default, backward)
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend, device):
    torch._dynamo.reset()

    def step(x, y, log_scale, ids):
        return mmkernels.info_nce(F.normalize(x, dim=1), F.normalize(y, dim=1), scale=log_scale.exp(), ids=ids)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    log_scale = torch.tensor(2.0, device=device, requires_grad=True)
    for N in (16, 24, 40, 56):
        x, y = (torch.randn(N, 8, device=device, requires_grad=True) for _ in "xy")
        ids = torch.randint(0, N, (N,), device=device)
        wanted, got = step(x, y, log_scale, ids), compiled(x, y, log_scale, ids)
        torch.testing.assert_close(got, wanted)
        tensors = (x, y, log_scale)
        for a, b in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(wanted, tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_with_itself(device):
    """One tensor as both sides: a loss of views within one tower."""
    torch._dynamo.reset()
    x = torch.randn(16, 8, device=device, requires_grad=True)
    compiled = torch.compile(lambda x: mmkernels.info_nce(x, x), fullgraph=True, backend="aot_eager")
    (got,), (wanted,) = (torch.autograd.grad(f(x), x) for f in (compiled, lambda x: mmkernels.info_nce(x, x)))
    torch.testing.assert_close(got, wanted)


def test_compile_of_the_whole_module_under_autocast(device):
    torch._dynamo.reset()
    criterion = torch.compile(mmkernels.nn.InfoNCE(label_smoothing=0.1), fullgraph=True, backend="aot_eager")
    x, y = (torch.randn(16, 8, device=device) for _ in "xy")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = criterion(x, y)
        wanted = mmkernels.nn.InfoNCE(label_smoothing=0.1)(x, y)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted)


def _train_step(rank, world, rendezvous, state, x, y, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    towers = torch.nn.ModuleDict({"x": torch.nn.Linear(6, 4), "y": torch.nn.Linear(6, 4)})
    towers.load_state_dict(state)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.towers, self.log_scale = towers, torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, x, y):
            return mmkernels.info_nce(self.towers["x"](x), self.towers["y"](y), scale=self.log_scale.exp())

    model = torch.nn.parallel.DistributedDataParallel(Model())
    model(x[rank], y[rank]).backward()
    results.put((rank, [p.grad.tolist() for p in model.parameters()]))
    dist.barrier()
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    """Gradients are the mean over processes of each one's own batch."""
    towers = torch.nn.ModuleDict({"x": torch.nn.Linear(6, 4), "y": torch.nn.Linear(6, 4)})
    x, y = torch.randn(2, 8, 6), torch.randn(2, 8, 6)
    log_scale = torch.tensor(1.0, requires_grad=True)
    losses = [reference.info_nce(towers["x"](x[k]), towers["y"](y[k]), log_scale.exp()) for k in range(2)]
    wanted = torch.autograd.grad(sum(losses) / 2, [log_scale, *towers.parameters()])
    context = mp.get_context("spawn")
    results = context.Queue()
    arguments = (2, tmp_path / "rendezvous", towers.state_dict(), x, y, results)
    workers = [context.Process(target=_train_step, args=(rank, *arguments)) for rank in range(2)]
    for w in workers:
        w.start()
    gradients = [results.get(timeout=120)[1] for _ in workers]
    for w in workers:
        w.join(timeout=60)
        assert w.exitcode == 0
    for got in gradients:
        for g, t in zip(got, wanted, strict=True):
            torch.testing.assert_close(torch.tensor(g), t, atol=1e-6, rtol=1e-5)


def test_scratch_that_is_kept_between_calls(device):
    """One thread's tiles are not another's, and those made in inference mode serve a training step after it."""
    x, y = (torch.randn(2, 300, 16, device=device) for _ in "xy")
    with torch.inference_mode():
        mmkernels.info_nce(x[0], y[0])

    def step(k):
        xk = x[k].clone().requires_grad_()
        mmkernels.info_nce(xk, y[k], temperature=0.5).backward()
        return xk.grad

    alone = [step(0), step(1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(step, [0, 1] * 50))
    assert all(torch.equal(g, alone[k % 2]) for k, g in enumerate(together))
