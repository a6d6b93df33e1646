"""One file an op, named as its kernels are: the tests it must pass, its cases, its flops, and a table of candidates.

`logsumexp.py` is the model. `compare` does the rest: gate, alternation, peaks, JSON, table, report.
"""
