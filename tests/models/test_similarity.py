"""CKAMeter: batches against all rows, hooks, errors, the picture."""

import pytest
import torch

import mmkernels
from mmkernels.models.similarity import CKAMeter


def layers(n=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    mixed = x @ torch.randn(6, 10, generator=generator, dtype=torch.float64)
    return [x, mixed.relu()], [mixed, torch.randn(n, 20, generator=generator, dtype=torch.float64), x**2]


@pytest.mark.parametrize("options", [{}, {"kernel": "rbf", "gamma": 0.1}], ids=str)
def test_one_batch_is_debiased_cka(options):
    x, y = layers()
    meter = CKAMeter(**options)
    meter.update(x, y)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            kernel, gamma = options.get("kernel", "linear"), options.get("gamma", "median")
            wanted = mmkernels.cka(a, b, kernel, gamma=gamma, debiased=True)
            assert meter.compute()[i, j].item() == pytest.approx(wanted.item(), abs=1e-9)


def test_batches_add_up_to_all_rows():
    """The ratio of sums agrees with all rows; the mean of ratios of biased CKA does not."""
    x, y = layers(3000)
    whole, batches = CKAMeter(), CKAMeter()
    whole.update(x, y)
    biased = []
    for start in range(0, 3000, 30):
        rows = slice(start, start + 30)
        batches.update([t[rows].unflatten(1, (-1, 2)) for t in x], [t[rows] for t in y])  # flattened again
        biased.append(mmkernels.cka(x[0][rows], y[1][rows]))
    assert (batches.compute() - whole.compute()).abs().max() < 0.02
    assert whole.compute()[0, 1].abs() < 0.02
    assert torch.stack(biased).mean() > 0.2


def test_hooks_and_picture(tmp_path):
    first = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    second = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh())
    meter, x = CKAMeter(), torch.randn(50, 5)
    with (
        pytest.raises(ValueError, match="there is no layer 7; layers are 0, 1, 2"),
        meter.watch(first, ["7"], second, []),
    ):
        pass
    with meter.watch(first, ["0", "2"], second, ["1"]):
        first(x)
        with pytest.raises(ValueError, match="nothing was caught of some layers"):
            meter.update()
        second(x)
        meter.update()
    assert not first[0]._forward_hooks
    direct = CKAMeter()
    direct.update([first[0](x), first(x)], [second(x)])
    torch.testing.assert_close(meter.compute(), direct.compute())
    pytest.importorskip("matplotlib")
    assert meter.plot(tmp_path / "cka.png").read_bytes().startswith(b"\x89PNG")


def test_errors():
    meter = CKAMeter()
    with pytest.raises(ValueError, match="no batch was added"):
        meter.compute()
    x, y = torch.randn(2, 10, 3)
    with pytest.raises(ValueError, match=r"same number of rows, at least 4, got \[9, 10\]"):
        meter.update([x], [y[1:]])
    with pytest.raises(ValueError, match=r"at least 4, got \[3\]"):
        meter.update([x[:3]], [y[:3]])
    meter.update([x], [y])
    with pytest.raises(ValueError, match=r"\(1, 1\) layers as before, got \(2, 1\)"):
        meter.update([x, x], [y])


def test_what_an_update_takes():
    x, y = layers(20)
    meter = CKAMeter()
    for arguments, message in (
        ((x, None), "both networks, or of none"),
        ((None, y), "both networks, or of none"),
        (([], y), "at least one layer"),
        (([x[0][:, 0]], y), "activations a tensor"),
        (([x[0].numpy()], y), "activations a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            meter.update(*arguments)
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    with meter.watch(net, ["0"], net, ["1"]):
        net(x[0].float())
        meter.update()
    with pytest.raises(ValueError, match="other layers"), meter.watch(net, ["1"], net, ["0"]):
        pass


def test_autocast_is_no_matter():
    x, y = ([t.float() for t in side] for side in layers(50))
    meters = CKAMeter("rbf", gamma=0.1), CKAMeter("rbf", gamma=0.1)
    meters[0].update(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        meters[1].update(x, y)
    assert torch.equal(meters[0].compute(), meters[1].compute())
