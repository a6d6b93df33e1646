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


def mixed(n, d, device):
    """Correlated features of several scales, far from the origin."""
    mixing = torch.eye(d) + 0.5 * torch.rand(d, d)
    return (torch.randn(n, d) @ mixing * torch.linspace(0.5, 3, d) + 100).to(device)


OPTIONS = [
    {},
    {"method": "zca_cor"},
    {"method": "pca"},
    {"method": "cholesky"},
    {"groups": 2},
    {"solver": "newton_schulz"},
    {"method": "cholesky", "sub_batch": 32},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whitening_decorrelates_and_remembers(options, device):
    layer = mmkernels.nn.Whitening(6, momentum=0.5, **options).to(device)
    assert "Whitening(6" in repr(layer)
    x = mixed(128, 6, device)
    z = layer(x)
    size = 6 // options.get("groups", 1)
    torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-3, rtol=0)
    if "sub_batch" not in options:
        for part in z.split(size, 1):
            torch.testing.assert_close(part.T.cov(), torch.eye(size, device=device), atol=1e-3, rtol=0)
    for _ in range(20):
        layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))
    if "sub_batch" not in options:
        torch.testing.assert_close(layer.eval()(x), z, atol=1e-3, rtol=1e-3)
    restored = mmkernels.nn.Whitening(6, **options).to(device).eval()
    restored.load_state_dict(layer.state_dict())
    torch.testing.assert_close(restored(x), layer.eval()(x))


def test_whitening_of_sub_batches(device):
    """Every part of the rows is white by itself."""
    layer = mmkernels.nn.Whitening(4, method="cholesky", sub_batch=32, reg=1e-7).to(device)
    x = mixed(96, 4, device)
    torch.manual_seed(3)
    z = layer(x)
    torch.manual_seed(3)
    order = torch.randperm(96, device=device)
    for part in z[order].view(3, 32, 4):
        torch.testing.assert_close(part.T.cov(), torch.eye(4, device=device), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="multiple of sub_batch = 32 rows, got 95"):
        layer(x[1:])


def test_whitening_of_images_and_dtypes(device):
    images = mixed(4 * 5 * 3, 6, device).view(4, 5, 3, 6).permute(0, 3, 1, 2)
    layer = mmkernels.nn.Whitening(6).to(device)
    z = layer(images)
    assert z.shape == images.shape
    rows = images.permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(z.permute(0, 2, 3, 1).reshape(-1, 6), mmkernels.nn.Whitening(6).to(device)(rows))
    assert mmkernels.nn.Whitening(6).to(device)(rows.half() - 100).dtype == torch.float16
    with torch.autocast(device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(mmkernels.nn.Whitening(6).to(device)(rows), z.permute(0, 2, 3, 1).reshape(-1, 6))


def test_whitening_of_constant_features_trains_on(device):
    layer = mmkernels.nn.Whitening(4).to(device)
    x = mixed(64, 4, device)
    x[:, 2] = 3.3
    x.requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    x = mixed(3, 4, device).requires_grad_()  # fewer rows than features
    layer(x).pow(3).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lda"}, "method must be one of 'zca'"),
        ({"solver": "newton_schulz", "method": "pca"}, "belongs to 'zca' and 'zca_cor'"),
        ({"iterations": 5}, "iterations belong to 'newton_schulz'"),
        ({"groups": 4}, "groups must divide num_features, got 4 and 6"),
        ({"momentum": 1.5}, "momentum must be at most 1"),
        ({"reg": 0.0}, "reg must be finite and in"),
        ({"sub_batch": 12, "group": object()}, "exclude each other"),
    ],
)
def test_whitening_options(options, message):
    with pytest.raises(ValueError, match=message):
        mmkernels.nn.Whitening(6, **options)


def test_whitening_input(device):
    layer = mmkernels.nn.Whitening(6).to(device)
    with pytest.raises(ValueError, match="x must have 6 features, got shape"):
        layer(torch.randn(10, 5, device=device))
    with pytest.raises(ValueError, match="more than 1 row"):
        layer(torch.randn(1, 6, device=device))
    with pytest.raises(TypeError, match="must be float16"):
        layer(torch.ones(10, 6, dtype=torch.int64, device=device))
