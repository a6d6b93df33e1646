"""scikit-learn estimators on kernels that are never stored: the extra `estimators`."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("scikit-learn is missing: pip install 'mmkernels[estimators]'", name="sklearn") from error

from mmkernels.estimators.kernel_ridge import KernelRidge

__all__ = ["KernelRidge"]
