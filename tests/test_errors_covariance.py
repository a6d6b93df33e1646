"""Bad input of covariances, whitening and CCA: what must hold and what was got."""

import pytest
import torch

import mmkernels

X, Y, MASK = torch.randn(6, 4), torch.randn(6, 3), torch.ones(6, dtype=torch.bool)
NAN = float("nan")
COVARIANCE, CCA, GCCA = mmkernels.covariance, mmkernels.cca_loss, mmkernels.gcca_loss
RHO, WHITEN, BARLOW = mmkernels.canonical_correlations, mmkernels.whiten, mmkernels.barlow_twins_loss


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (COVARIANCE, (), {}, ValueError, "at least one view must be given, got none"),
        (COVARIANCE, (X.numpy(),), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        (COVARIANCE, (X[0],), {}, ValueError, r"x must have 2 dimension\(s\), got shape \(4,\)"),
        (COVARIANCE, (X.int(),), {}, TypeError, "x must be float16.*got torch.int32"),
        (COVARIANCE, (X[:, :0],), {}, ValueError, r"x must have at least one feature, got shape \(6, 0\)"),
        (COVARIANCE, (X, Y[:5]), {}, ValueError, r"y must have as many rows.*got shapes \(5, 3\) and \(6, 4\)"),
        (COVARIANCE, (X, Y[None]), {}, ValueError, r"y must have as many rows.*\(1, 6, 3\)"),
        (COVARIANCE, (X, Y.double()), {}, TypeError, "y must have the first view's dtype, got torch.float64"),
        (COVARIANCE, (X, X, Y.to("meta")), {}, ValueError, "z must be on the first view's device, got meta and cpu"),
        (COVARIANCE, (X, X, X, Y.half()), {}, TypeError, r"views\[3\] must have the first view's dtype"),
        (COVARIANCE, (X,), {"weights": X[:5, 0]}, ValueError, r"weights must have shape \(N,\).*got \(5,\)"),
        (COVARIANCE, (X,), {"weights": [1.0] * 6}, TypeError, "weights must be a torch.Tensor, got list"),
        (COVARIANCE, (X,), {"weights": MASK}, TypeError, "weights must be float16.*got torch.bool"),
        (COVARIANCE, (X,), {"weights": X[:, 0].to("meta")}, ValueError, "weights must be on x's device"),
        (COVARIANCE, (X, Y), {"present": MASK}, TypeError, "present must be a sequence of 2.*got Tensor"),
        (COVARIANCE, (X, Y), {"present": [MASK]}, TypeError, "present must be a sequence of 2.*got list of 1"),
        (COVARIANCE, (X, Y), {"present": [None, X[:, 0]]}, TypeError, r"present\[1\] must be a boolean.*float32"),
        (COVARIANCE, (X, Y), {"present": [MASK[:5], None]}, ValueError, r"present\[0\] must have length N = 6, got 5"),
        (COVARIANCE, (X, Y), {"present": [1, None]}, TypeError, r"present\[0\] must be a torch.Tensor, got int"),
        (COVARIANCE, (X,), {"correction": -1}, ValueError, r"correction must be finite and in \[0, inf\), got -1"),
        (COVARIANCE, (X,), {"correction": NAN}, ValueError, "correction must be finite.*got nan"),
        (COVARIANCE, (X,), {"correction": "1"}, TypeError, "correction must be a number, got str"),
        (COVARIANCE, (X,), {"groups": 3}, ValueError, r"groups must divide the number of features, got 3"),
        (COVARIANCE, (X,), {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        (COVARIANCE, (X,), {"groups": 2.0}, TypeError, "groups must be an int, got float"),
        (CCA, (X, Y), {"objective": "max"}, ValueError, "objective must be one of 'sum'.*got 'max'"),
        (CCA, (X, Y), {"k": 4}, ValueError, r"k must be in \[1, 3\], got 4"),
        (CCA, (X, Y), {"k": 0}, ValueError, r"k must be in \[1, 3\], got 0"),
        (CCA, (X, Y), {"k": True}, TypeError, "k must be an int, got bool"),
        (CCA, (X, Y), {"reg": -1.0}, ValueError, r"reg must be finite and in \[0, inf\), got -1"),
        (CCA, (X, Y), {"reg": NAN}, ValueError, "reg must be finite.*got nan"),
        (CCA, (X, Y), {"reg": (0.1, 0.1, 0.1)}, ValueError, "reg must be a number or one for each of 2 views, got 3"),
        (CCA, (X, Y), {"reg": "small"}, TypeError, "reg must be a number, got str"),
        (CCA, (X, Y), {"shrinkage": 1.5}, ValueError, r"shrinkage must be in \[0, 1\].*got 1.5"),
        (CCA, (X, Y), {"shrinkage": NAN}, ValueError, "shrinkage must be.*got nan"),
        (CCA, (X, Y), {"shrinkage": "lw"}, ValueError, "shrinkage must be one of 'ledoit_wolf', 'oas', got 'lw'"),
        (CCA, (X, Y), {"shrinkage": [0.1]}, ValueError, "shrinkage must be one value or one for each of 2 views"),
        (CCA, (X, Y), {"shrinkage": "ledoit_wolf", "weights": X[:, 0]}, ValueError, "'ledoit_wolf' needs all rows"),
        (CCA, (X[:1], Y[:1]), {}, ValueError, r"views must have at least 2 rows, got shape \(1, 4\)"),
        (CCA, (X, Y[:5]), {}, ValueError, "y must have as many rows"),
        (RHO, (X.half(), Y), {}, TypeError, "y must have the first view's dtype, got torch.float32 and torch.float16"),
        (GCCA, (X,), {}, TypeError, "views must be a list or tuple of tensors, got Tensor"),
        (GCCA, ([],), {}, ValueError, "at least one view must be given"),
        (GCCA, ([X, Y, X],), {"reg": [0.1, 0.1]}, ValueError, "one for each of 3 views, got 2"),
        (mmkernels.mcca_loss, ([X, Y],), {"k": 5}, ValueError, r"k must be in \[1, 3\], got 5"),
        (WHITEN, (X,), {"reg": -1}, ValueError, "reg must be finite"),
        (WHITEN, (X,), {"shrinkage": -0.1}, ValueError, r"shrinkage must be in \[0, 1\].*got -0.1"),
        (WHITEN, (X.long(),), {}, TypeError, "x must be float16.*got torch.int64"),
        (BARLOW, (X, Y), {}, ValueError, r"y must have as many features as x, got shapes \(6, 3\) and \(6, 4\)"),
        (BARLOW, (X, X[:5]), {}, ValueError, "y must have as many rows"),
        (BARLOW, (X[None], X[None]), {}, ValueError, r"x must have 2 dimension\(s\), got shape \(1, 6, 4\)"),
        (BARLOW, (X, X), {"lambd": 0}, ValueError, r"lambd must be finite and in \(0, inf\), got 0"),
        (BARLOW, (X, X), {"eps": -1e-3}, ValueError, r"eps must be finite and in \[0, inf\)"),
        (BARLOW, (X[:0], X[:0]), {}, ValueError, r"x must have at least 1 row\(s\), got shape \(0, 4\)"),
        (mmkernels.sdl_loss, (X, X), {"lambd": NAN}, ValueError, "lambd must be finite.*got nan"),
        (mmkernels.sdl_loss, (X[:0], X[:0]), {}, ValueError, r"x must have at least 1 row\(s\)"),
        (mmkernels.vicreg_loss, (X[:1], X[:1]), {}, ValueError, r"x must have at least 2 row\(s\), got shape \(1, 4\)"),
        (mmkernels.vicreg_loss, (X, X), {"variance": -1}, ValueError, r"variance must be finite and in \[0, inf\)"),
        (mmkernels.vicreg_loss, (X, X.double()), {}, TypeError, "y must have x's dtype"),
    ],
)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
