"""Modules: InfoNCE is the function with its options fixed, CLIPLoss is open_clip's ClipLoss."""

import importlib.metadata
import importlib.util

import pytest
import torch
import torch.nn.functional as F

import mmkernels
from reference import contrastive as reference


def pairs(device, N=40, D=16):
    return [F.normalize(torch.randn(N, D, device=device), dim=1).requires_grad_() for _ in "xy"]


@pytest.fixture(scope="module")
def clip_loss():
    """open_clip's own class, from its file: importing the package asks for torchvision."""
    try:
        path = importlib.metadata.distribution("open_clip_torch").locate_file("open_clip/loss.py")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss


@pytest.mark.parametrize("bias", [None, 3.0])
def test_clip_loss_is_open_clips(bias, clip_loss, device):
    image, text = pairs(device)
    scale = torch.tensor(14.3, device=device, requires_grad=True)
    bias = None if bias is None else torch.tensor(bias, device=device, requires_grad=True)
    tensors = [t for t in (image, text, scale, bias) if t is not None]
    ours = mmkernels.nn.CLIPLoss()(image, text, scale, bias)
    theirs = clip_loss()(image, text, scale, bias)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(ours, tensors), torch.autograd.grad(theirs, tensors), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    ours = mmkernels.nn.CLIPLoss()(image, text, scale, bias, output_dict=True)
    theirs = clip_loss()(image, text, scale, bias, output_dict=True)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours["contrastive_loss"], theirs["contrastive_loss"], atol=1e-6, rtol=1e-6)


def test_clip_loss_takes_a_number(device):
    image, text = pairs(device)
    loss = mmkernels.nn.CLIPLoss()(image, text, 14.3)
    torch.testing.assert_close(loss, reference.cross_entropy_both_ways(image, text, 14.3), atol=1e-6, rtol=1e-6)


def test_accuracy_counts_both_directions(device):
    image, text = (t.detach() for t in pairs(device))
    text[:25] = image[:25]
    result = mmkernels.nn.CLIPLoss(accuracy=True)(image, text, 14.3, output_dict=True)
    s = image.double() @ text.double().T
    target = torch.arange(40, device=device)
    wanted = ((s.argmax(1) == target).double().mean() + (s.argmax(0) == target).double().mean()) / 2
    assert 0.5 < wanted < 0.9
    assert result["accuracy"].item() == pytest.approx(wanted.item(), abs=1e-6)
    assert not result["accuracy"].requires_grad


def test_info_nce_module_learns_its_temperature(device):
    x, y = pairs(device)
    temperature = torch.nn.Parameter(torch.tensor(0.1, device=device))
    criterion = mmkernels.nn.InfoNCE(temperature, symmetric=False, label_smoothing=0.1, reduction="sum")
    assert list(criterion.parameters()) == [temperature]
    negatives, weight = torch.randn(5, 16, device=device), torch.rand(40, device=device)
    loss = criterion(x, y, negatives=negatives, weight=weight)
    wanted = mmkernels.info_nce(
        x, y, temperature=0.1, symmetric=False, label_smoothing=0.1, reduction="sum", negatives=negatives, weight=weight
    )
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert temperature.grad is not None
    assert temperature.grad != 0
    assert "learned" in repr(criterion)
    assert "temperature=0.07" in repr(mmkernels.nn.InfoNCE())
