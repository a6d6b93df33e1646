"""scikit-learn estimators on kernels and covariances that are streamed: the extra `estimators`."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("scikit-learn is missing: pip install 'mmkernels[estimators]'", name="sklearn") from error

from mmkernels.estimators.cca import CCA, PLS, RidgeCCA
from mmkernels.estimators.information import KDE, KSG, GaussianMI
from mmkernels.estimators.kernel_cca import KernelCCA
from mmkernels.estimators.kernel_ridge import KernelRidge
from mmkernels.estimators.mcca import GCCA, MCCA

__all__ = ["CCA", "GCCA", "KDE", "KSG", "MCCA", "PLS", "GaussianMI", "KernelCCA", "KernelRidge", "RidgeCCA"]
