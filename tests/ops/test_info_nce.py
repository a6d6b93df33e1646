"""info_nce: every option against the dense formula in float64, its extremes, and the digits it keeps."""

import pytest
import torch
import torch.nn.functional as F

import mmkernels
from reference import contrastive as reference
from tests.accuracy import DTYPES, WORKING_DTYPES, assert_accurate
from tests.conftest import INTERPRETED

OPTIONS = {
    "symmetric": {},
    "one-sided": {"symmetric": False},
    "negatives": {"negatives": 9},
    "one-sided negatives": {"symmetric": False, "negatives": 9},
    "log_weights": {"log_weights": "all"},
    "negatives log_weights": {"negatives": 9, "log_weights": "all"},
    "log_weights of negatives": {"negatives": 9, "log_weights": "negatives"},
    "ids": {"ids": "shared"},
    "ids negatives": {"ids": "shared", "negatives": 9},
    "ids of all columns": {"ids": "pair", "negatives": 9},
    "exclude_positive": {"exclude_positive": True},
    "exclude_positive ids": {"exclude_positive": True, "ids": "shared", "negatives": 3},
    "label_smoothing": {"label_smoothing": 0.1},
    "label_smoothing negatives log_weights": {"label_smoothing": 0.2, "negatives": 9, "log_weights": "all"},
    "one-sided label_smoothing": {"label_smoothing": 0.1, "symmetric": False, "negatives": 4},
    "weight": {"weight": True},
    "sum": {"reduction": "sum", "weight": True},
    "none": {"reduction": "none"},
}


def pairs(N, D, dtype, device):
    """Normalised pairs that resemble each other, as a trained model's do."""
    x = F.normalize(torch.randn(N, D, device=device, dtype=torch.float64), dim=1)
    y = F.normalize(x + 0.5 * torch.randn(N, D, device=device, dtype=torch.float64) / D**0.5, dim=1)
    return x.to(dtype), y.to(dtype)


def arguments(options, N, D, dtype, device):
    """Tensors that carry gradients, by name, and the remaining keywords of info_nce."""
    wide = torch.promote_types(dtype, torch.float32)
    x, y = pairs(N, D, dtype, device)
    tensors = {"x": x, "y": y, "scale": torch.tensor(8.0, device=device, dtype=wide)}
    rest = {k: v for k, v in options.items() if k in ("symmetric", "exclude_positive", "label_smoothing", "reduction")}
    M = options.get("negatives", 0)
    if M:
        tensors["negatives"] = F.normalize(torch.randn(M, D, device=device, dtype=torch.float64), dim=1).to(dtype)
    if "log_weights" in options:
        size = M if options["log_weights"] == "negatives" else N + M
        tensors["log_weights"] = torch.randn(size, device=device, dtype=wide)
    if "weight" in options:
        tensors["weight"] = torch.rand(N, device=device, dtype=wide)
    if "ids" in options:
        rows = torch.randint(0, N, (N,), device=device)
        rest["ids"] = rows if options["ids"] == "shared" else (rows, torch.randint(0, N, (N + M,), device=device))
    return tensors, rest


def dense(x, y, scale, log_weights=None, ids=None, negatives=None, **options):
    """The reference with info_nce's short forms of log_weights and ids."""
    if log_weights is not None and negatives is not None and len(log_weights) == len(negatives):
        log_weights = torch.cat([log_weights.new_zeros(len(x)), log_weights])
    ids = (ids, ids) if isinstance(ids, torch.Tensor) else ids
    return reference.info_nce(x, y, scale, log_weights=log_weights, ids=ids, negatives=negatives, **options)


def run(function, tensors, rest, dtype):
    """The loss and the gradients of its sum, in dtype(tensor)."""
    leaves = {k: t.detach().to(dtype(t)).requires_grad_() for k, t in tensors.items()}
    loss = function(**leaves, **rest)
    return loss, torch.autograd.grad(loss.sum(), list(leaves.values()))


def compare(tensors, rest):
    x = tensors["x"]
    wide = torch.promote_types(x.dtype, torch.float32)
    loss, gradients = run(mmkernels.info_nce, tensors, rest, lambda t: t.dtype)
    truth, true_gradients = run(dense, tensors, rest, lambda t: torch.float64)
    low, wide_gradients = run(dense, tensors, rest, lambda t: wide)
    _, narrow_gradients = run(dense, tensors, rest, lambda t: x.dtype)
    assert loss.dtype == wide
    exponent = (tensors["scale"] * (x.double() @ tensors["y"].double().T)).abs().max().item()
    assert_accurate("loss", loss, low, truth, roundings=8, magnitude=1 + exponent)
    # A gradient is a difference: the positive's pull, 1 - e^-loss (all of it without the positive), less the others'.
    each = dense(**{k: t.double() for k, t in tensors.items() if k != "weight"}, **(rest | {"reduction": "none"}))
    pull = 1.0 if "exclude_positive" in rest else -torch.expm1(-each.abs().max()).item()
    sizes = dict.fromkeys(tensors, pull * tensors["scale"].item()) | {"scale": pull, "weight": 1.0, "log_weights": 0.0}
    for name, got, w, n, true in zip(tensors, gradients, wide_gradients, narrow_gradients, true_gradients, strict=True):
        assert_accurate(f"gradient of {name}", got, w if got.dtype == wide else n, true, 16, sizes[name], exponent)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, dtype, device):
    compare(*arguments(options, 67, 21, dtype, device))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("exclude_positive", [False, True])
def test_one_pair_has_no_loss(exclude_positive, reduction, device):
    x, y = (t.requires_grad_() for t in pairs(1, 5, torch.float32, device))
    loss = mmkernels.info_nce(x, y, exclude_positive=exclude_positive, reduction=reduction)
    gradients = torch.autograd.grad(loss.sum(), (x, y))
    assert loss.sum() == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("exclude_positive", [False, True])
def test_all_negatives_false_have_no_loss(exclude_positive, device):
    x, y = (t.requires_grad_() for t in pairs(8, 5, torch.float32, device))
    same = torch.full((8,), 3, device=device)
    loss = mmkernels.info_nce(x, y, ids=same, exclude_positive=exclude_positive)
    gradients = torch.autograd.grad(loss, (x, y))
    assert loss == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scales(scale, dtype, device):
    tensors, rest = arguments({}, 40, 16, dtype, device)
    tensors["scale"] = torch.tensor(scale, device=device, dtype=dtype)
    compare(tensors, rest)


@pytest.mark.parametrize("temperature", [0.005, 0.07, 1])
def test_temperature_is_inverse_scale(temperature, device):
    x, y = pairs(30, 8, torch.float32, device)
    t = torch.tensor(float(temperature), device=device, requires_grad=True)
    a = mmkernels.info_nce(x, y, temperature=t)
    assert torch.equal(a, mmkernels.info_nce(x, y, scale=1 / t))
    torch.testing.assert_close(a, mmkernels.info_nce(x, y, temperature=temperature))
    truth = reference.info_nce(x.double(), y.double(), 1 / t.double())
    (got,), (wanted,) = torch.autograd.grad(a, t), torch.autograd.grad(truth, t)
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=1e-6)


def test_default_temperature(device):
    x, y = pairs(30, 8, torch.float32, device)
    assert torch.equal(mmkernels.info_nce(x, y), mmkernels.info_nce(x, y, temperature=0.07))


def test_identical_rows_give_log_n(device):
    x = F.normalize(torch.randn(1, 16, device=device), dim=1).expand(50, 16)
    loss = mmkernels.info_nce(x, x, temperature=0.005)
    torch.testing.assert_close(loss.item(), torch.tensor(50.0).log().item(), rtol=1e-5, atol=0)


def test_orthogonal_pairs_keep_their_digits(device):
    """The loss log(1 + (N-1) e^-80) is 1e-35 of the scores: a difference of log-sum-exps has no digit of it."""
    x = torch.eye(32, device=device)
    loss = mmkernels.info_nce(x, x, scale=80.0)
    truth = 31 * torch.exp(torch.tensor(-80.0, dtype=torch.float64)).item()
    assert abs(loss.item() - truth) <= 1e-4 * truth


@pytest.mark.parametrize("dtype", WORKING_DTYPES)
def test_gradient_at_small_loss(dtype, device):
    """Where training converges the gradient still has the digits of its dtype: within 0.3 % in bf16, by norm."""
    N, D = 512, 64
    shared = F.normalize(torch.randn(1, D, device=device, dtype=torch.float64), dim=1)  # the cone of real embeddings
    x = F.normalize(F.normalize(torch.randn(N, D, device=device, dtype=torch.float64), dim=1) + shared, dim=1)
    y = F.normalize(x + 0.02 * torch.randn(N, D, device=device, dtype=torch.float64), dim=1)
    tensors = {"x": x.to(dtype), "y": y.to(dtype), "scale": torch.tensor(42.0, device=device)}
    # The loss is scaled as training in fp16 scales it: its gradients would be subnormal numbers.
    loss, gradients = run(lambda **t: 4096 * mmkernels.info_nce(**t), tensors, {}, lambda t: t.dtype)
    truth, true_gradients = run(lambda **t: 4096 * dense(**t), tensors, {}, lambda t: torch.float64)
    assert 2e-5 < truth / 4096 < 2e-4
    assert abs(loss.item() / truth.item() - 1) < 1e-4
    limit = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}[dtype]
    for got, wanted in zip(gradients, true_gradients, strict=True):
        assert (got.double() - wanted).norm() <= limit * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_as_a_matrix_product_does(dtype, device):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    x, y = (t.requires_grad_() for t in pairs(40, 16, torch.float32, device))
    with torch.autocast(device.type, dtype=dtype):
        loss = mmkernels.info_nce(x, y, label_smoothing=0.1)
        wide = mmkernels.info_nce(x.double(), y.double())
    assert loss.dtype == torch.float32
    assert wide.dtype == torch.float64
    wanted = mmkernels.info_nce(x.to(dtype), y.to(dtype), label_smoothing=0.1)
    assert torch.equal(loss, wanted)
    for a, b in zip(torch.autograd.grad(loss, (x, y)), torch.autograd.grad(wanted, (x, y)), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_backward_under_autocast_is_the_same(device):
    x, y = (t.requires_grad_() for t in pairs(40, 16, torch.float32, device))
    loss = mmkernels.info_nce(x, y)
    wanted = torch.autograd.grad(loss, (x, y), retain_graph=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = torch.autograd.grad(loss, (x, y))
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_backward_twice_adds_the_same_gradient(device):
    x, y = (t.requires_grad_() for t in pairs(40, 16, torch.float32, device))
    loss = 3 * mmkernels.info_nce(x, y)
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    second = torch.autograd.grad(loss, (x, y))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
