"""Exact pairwise losses and kernels on paired data, in O(N) memory, with gradients, on a CPU or a GPU."""

from mmkernels import nn
from mmkernels.ops.contrastive import info_nce, logsumexp_scores
from mmkernels.ops.retrieval import ranks, recall_at_k, topk
from mmkernels.tiled._tiles import memory_budget, set_memory_budget

__version__ = "0.1.0"

__all__ = [
    "info_nce",
    "logsumexp_scores",
    "memory_budget",
    "nn",
    "ranks",
    "recall_at_k",
    "set_memory_budget",
    "topk",
]
