"""One differentiable function per reduction: `torch.autograd.Function` around the operators of `_dispatch`."""
