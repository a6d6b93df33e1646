"""The tolerance of every numerical test: twice the error of the dense formula in the same dtype, plus a few roundings.

Errors are maxima over the tensor, against the same formula in float64.
"""

import torch

from tests.conftest import INTERPRETED

# Triton's interpreter multiplies bfloat16 wrongly, so it is left to the tiles and to GPUs.
WORKING_DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
DTYPES = WORKING_DTYPES + [torch.float64]


def assert_accurate(name, got, dense, truth, roundings=4.0, magnitude=0.0, exponent=0.0):
    """|got - truth| <= 2 |dense - truth| + roundings * eps * max(|truth|, magnitude), in the maximum norm.

    eps is the resolution of got's dtype; magnitude is that of the terms whose difference the result is. A weight
    e^(s - q) is no better than the float32 (or float64) roundings of s and q: exponent, the largest |s|, allows for
    those.
    """
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(truth.shape)}"
    eps = torch.finfo(got.dtype).eps
    wide = torch.finfo(torch.promote_types(got.dtype, torch.float32))
    got, dense, truth = got.detach().double(), dense.detach().double(), truth.detach().double()
    infinite = truth.isinf()
    assert torch.equal(got[infinite], truth[infinite]), f"{name}: infinities differ"
    got, dense, truth = got[~infinite], dense[~infinite], truth[~infinite]
    if truth.numel() == 0:
        return
    error = (got - truth).abs().max().item()
    dense_error = (dense - truth).abs().nan_to_num(0, 0).max().item()  # the dense formula may overflow in 16 bit
    size = max(truth.abs().max().item(), magnitude)
    bound = 2 * dense_error + (roundings * eps + 2 * exponent * wide.eps) * size + 1e3 * wide.smallest_normal
    assert error <= bound, f"{name}: error {error:.3g} exceeds {bound:.3g} (dense formula: {dense_error:.3g})"
