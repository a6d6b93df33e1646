"""Every kernel with parameters to try it with, its textbook formula, and how large the terms of its gradients are."""

import torch

import mmkernels
from mmkernels.tiled import _pair
from reference import kernel as reference
from tests.accuracy import assert_accurate
from tests.conftest import INTERPRETED

# name: (kernel, parameters as numbers or lists (tensors with a gradient), formula(x, y, **parameters))
KERNELS = {
    "polynomial": ("polynomial", {"gamma": 0.1, "coef0": 0.7}, {"degree": 3}, reference.polynomial),
    "square": ("polynomial", {"gamma": 0.1, "coef0": -0.2}, {"degree": 2}, reference.polynomial),
    "exponential": ("exponential", {"gamma": 0.1}, {}, reference.exponential),
    "sigmoid": ("sigmoid", {"gamma": 0.1, "coef0": 0.2}, {}, reference.sigmoid),
    "rbf": ("rbf", {"gamma": 0.05}, {}, reference.rbf),
    "mixture": ("rbf", {"gamma": [0.02, 0.05, 0.2]}, {}, reference.rbf_mixture),
    "laplacian": ("laplacian", {"gamma": 0.03}, {}, reference.laplacian),
    "matern 1/2": ("matern", {"length_scale": 3.0}, {"nu": 0.5}, reference.matern),
    "matern 3/2": ("matern", {"length_scale": 3.0}, {"nu": 1.5}, reference.matern),
    "matern 5/2": ("matern", {"length_scale": 3.0}, {"nu": 2.5}, reference.matern),
    "rational quadratic": (
        "rational_quadratic",
        {"length_scale": 3.0, "alpha": 1.7},
        {},
        reference.rational_quadratic,
    ),
    "energy": ("energy", {}, {}, reference.energy),
    "linear": ("linear", {}, {}, reference.linear),
    "cosine": ("cosine", {}, {}, reference.cosine),
}
STREAMED = [name for name in KERNELS if name not in ("linear", "cosine")]


def parameters(name, dtype, device):
    """The kernel's differentiable parameters as tensors."""
    return {key: torch.tensor(value, dtype=dtype, device=device) for key, value in KERNELS[name][1].items()}


def run(function, tensors, cotangent, dtype):
    """The output of function(**tensors), and gradients of <output, cotangent>, all in dtype (of a tensor)."""
    leaves = {key: t.detach().to(dtype(t)).requires_grad_() for key, t in tensors.items()}
    out = function(**leaves)
    gradients = torch.autograd.grad((out * cotangent.to(out.dtype)).sum(), leaves.values(), allow_unused=True)
    return {"out": out} | {
        key: torch.zeros_like(leaves[key]) if g is None else g for key, g in zip(leaves, gradients, strict=True)
    }


def compare(name, x, y=None, v=None, given=None):
    """Check values and gradients of K, or of K @ v, against the formula in float64.

    y None: x on both sides. given: other parameters than the table's, tensors or numbers.
    """
    kernel, _, options, formula = KERNELS[name]
    wide = torch.promote_types(x.dtype, torch.float32)
    values = parameters(name, wide, x.device) if given is None else given
    tensors = {"x": x, **values}
    tensors |= ({} if y is None else {"y": y}) | ({} if v is None else {"v": v})
    shape = torch.broadcast_shapes(x.shape[:-2], (x if y is None else y).shape[:-2], () if v is None else v.shape[:-2])
    columns = (x if y is None else y).shape[-2] if v is None else v.shape[-1]
    cotangent = torch.randn(*shape, x.shape[-2], columns, device=x.device, dtype=torch.float64)

    def ours(x, y=None, v=None, **values):
        if v is None:
            return mmkernels.kernel_matrix(x, y, kernel, **values, **options)
        return mmkernels.kernel_matmul(x, y, v, kernel, **values, **options)

    def dense(x, y=None, v=None, **values):
        K = formula(x, x if y is None else y, **values, **({"nu": options["nu"]} if "nu" in options else options))
        return K if v is None else K @ v

    got = run(ours, tensors, cotangent, lambda t: t.dtype)
    truth = run(dense, tensors, cotangent, lambda t: torch.float64)
    as_wide = run(dense, tensors, cotangent, lambda t: wide)
    narrow = run(dense, tensors, cotangent, lambda t: t.dtype) if x.dtype == wide else as_wide
    sizes, exponent = _sizes(name, x, y, v, cotangent, values)
    # On a GPU tiles of K and of weights are rounded to bfloat16, or multiplied in TF32, where the inputs are 16-bit.
    product = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(x.dtype, 0.0) if x.is_cuda else 0.0
    for key, result in got.items():
        assert result.isfinite().all(), key
        roundings = 8 + product / torch.finfo(result.dtype).eps
        assert_accurate(
            f"{name}: {key}",
            result,
            (as_wide if result.dtype == wide else narrow)[key].to(result.dtype),
            truth[key],
            roundings=roundings,
            magnitude=sizes.get(key, 0.0),
            exponent=exponent,
        )


def _sizes(name, x, y, v, cotangent, values):
    """How large the terms are that each result sums, and how large a kernel's argument is before it cancels."""
    kernel, _, options, _ = KERNELS[name]
    if kernel in ("linear", "cosine"):
        top = x.double().abs().amax().item() * 100
        return dict.fromkeys(("out", "x", "y", "v"), top * cotangent.abs().sum().item()), 0.0
    x = x.double()
    y = x if y is None else y.double()
    gamma = values.get("gamma", torch.ones((), device=x.device)).double()
    if "length_scale" in values:
        scale = values["length_scale"].double()
        x, y, gamma = x / scale, y / scale, torch.ones((), dtype=torch.float64, device=x.device)
    inner = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}[options["nu"]] if kernel == "matern" else kernel
    centre = x.mean(-2, keepdim=True) if inner not in _pair.DOTS else 0
    x, y = x - centre, y - centre
    a = x @ y.mT
    if inner == _pair.L1:
        a = reference.differences(x, y).abs().sum(-1)
    elif inner not in _pair.DOTS:
        a = reference.squared_distances(x, y)
    flat = a.reshape(-1, *a.shape[-2:])
    c = values.get("alpha", values.get("coef0", torch.zeros((), device=x.device))).double()
    g, c = (t.reshape(1, -1) if t.ndim < 2 else t.expand(*a.shape[:-2], 1, 1).reshape(-1, 1) for t in (gamma, c))
    c = c[:, 0]
    degree = options.get("degree", 1)
    k = _pair.formula(inner, degree, flat, g, c).abs().reshape(a.shape)
    slope = _pair.slope_formula(inner, degree, flat, g, c).abs().reshape(a.shape)
    p = cotangent.abs() if v is None else cotangent.abs() @ v.double().abs().mT
    w = p * slope
    reach = (x.abs().amax() + y.abs().amax()).item()
    out = k.amax() if v is None else (k @ v.double().abs()).amax()
    sides = [2 * reach * w.sum(d).amax().item() for d in (-1, -2)]
    length = values.get("length_scale", torch.ones((), device=x.device)).double().min().item()
    parameter = 4 * (w * (a.abs() + 1)).sum().item() / min(g.min().item(), length) + p.sum().item()
    sizes = {"out": out.item(), "x": sum(sides) / length, "y": sides[1] / length}
    sizes |= {"v": (k.mT @ cotangent.abs()).amax().item() if v is not None else 0.0}
    norms = (x.square().sum(-1).amax() + y.square().sum(-1).amax()).item()
    exponent = 0.0 if inner == _pair.L1 else g.max().item() * norms
    return sizes | dict.fromkeys(("gamma", "coef0", "alpha", "length_scale"), parameter), exponent


SHAPES = [(1, 1, 1), (7, 5, 3), (65, 33, 20), (40, 130, 300)] + ([] if INTERPRETED else [(64, 32, 16), (33, 70, 129)])


def data(*shape, dtype, device):
    """Rows of length about 4 whatever the width, so that the table's parameters fit all shapes."""
    x = torch.randn(*shape, device=device, dtype=torch.float64)
    return (4 * x / shape[-1] ** 0.5).to(dtype)
