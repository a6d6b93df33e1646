"""CLIP on icons: recall, tokens, the gradient of a large batch, checkpoints, and learning."""

import itertools
import math

import pytest
import torch

from mmkernels import info_nce
from mmkernels.data import Icons, name_ids, split
from mmkernels.models import _training
from mmkernels.models._recall import chance_at_k
from mmkernels.models._training import CHECKPOINT, Config, embed, evaluate, load, train
from mmkernels.models.clip import CLIP, backward, tokenize


@pytest.fixture(scope="module")
def few(icons):
    """A training and a validation set of a few icons each."""
    parts = split(icons)
    return icons.select(parts.train[:96]), icons.select(parts.validation[:20])


def test_chance():
    ids = torch.arange(1000)
    assert chance_at_k(ids, ids) == pytest.approx([0.001, 0.005, 0.01])
    # two right answers of five: 2/5 at once; 1 - C(3, 2)/C(5, 2) = 7/10 in two; surely in five
    assert chance_at_k(torch.tensor([0]), torch.tensor([0, 0, 1, 2, 3]), (1, 2, 5, 9)) == pytest.approx(
        [0.4, 0.7, 1, 1]
    )


def test_tokens():
    tokens = tokenize(["bell off", "bell", "a", ""])
    assert tokens.shape == (4, 1 + 4 + 1 + 3)
    assert (tokens[0, :5] == tokens[1, :5]).all()
    assert (tokens > 0).sum(1).tolist() == [9, 5, 2, 0]
    assert tokens[1, 0] != tokenize(["bells"])[0, 0]  # another word
    assert len(set(tokens[1].tolist()) & set(tokenize(["bells"])[0].tolist()) - {0}) == 3  # <be bel ell
    assert tokenize([]).shape == (0, 1)


@pytest.mark.parametrize("micro_batch", [5, 16])
def test_gradient_of_a_batch_in_parts(micro_batch):
    """As autograd gives it through all parts at once, equal ids taken out of the negatives."""
    model = CLIP().double()
    images, tokens = torch.rand(13, 32, 32, dtype=torch.float64), torch.randint(0, 99, (13, 4))
    ids = torch.arange(13) // 2
    loss = backward(model, images, tokens, ids, micro_batch)
    got = [p.grad.clone() for p in model.parameters()]

    count = math.ceil(13 / micro_batch)
    parts = zip(images.tensor_split(count), tokens.tensor_split(count), strict=True)
    x, y = (torch.cat(z) for z in zip(*(model(*part) for part in parts), strict=True))
    scores = (model.scale() * x @ y.T).masked_fill((ids[:, None] == ids) & ~torch.eye(13, dtype=torch.bool), -math.inf)
    dense = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean() / 2
    torch.testing.assert_close(loss, dense.detach())
    torch.testing.assert_close(got, list(torch.autograd.grad(dense, list(model.parameters()))))
    assert got[0].abs().max() > 0


def test_scale_is_learned_and_bounded():
    model = CLIP()
    assert model.scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert model.scale().item() == pytest.approx(100)


def run(few, config, out, **options):
    return list(train(*few, config, out, **options))


def content(out):
    return (out / CHECKPOINT).read_bytes()


def test_a_resumed_run_equals_an_uninterrupted_one(few, tmp_path):
    """Bit for bit: weights, moments of the optimiser and history, after a stop in the middle of an epoch."""
    config = Config(epochs=2, batch_size=32, seed=3)
    whole = run(few, config, tmp_path / "whole")
    first = list(itertools.islice(train(*few, config, tmp_path / "parts"), 4))  # 3 steps an epoch
    assert [step.epoch for step in first] == [1, 1, 1, 2]
    torch.randn(7)  # the global random state must not matter
    rest = run(few, config, tmp_path / "parts", resume=True)
    assert first[:3] + rest == whole
    (tensors, *rest), (expected, *expected_rest) = (_training._read(tmp_path / name) for name in ("parts", "whole"))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert any("exp_avg_sq" in name for name in expected)
    assert rest == expected_rest
    assert run(few, config, tmp_path / "parts", resume=True) == []


def test_the_seed_decides(few, tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        torch.randn(5)
        run(few, Config(epochs=1, batch_size=64, seed=seed), tmp_path / name)
    assert load(tmp_path / "a")[2] == load(tmp_path / "b")[2] != load(tmp_path / "c")[2]


def test_a_failure_in_the_middle_of_saving_leaves_the_last_checkpoint(few, tmp_path, monkeypatch):
    import safetensors.torch

    config = Config(epochs=2, batch_size=96)
    steps = train(*few, config, tmp_path)
    next(steps)
    before = content(tmp_path)
    save_file = safetensors.torch.save_file

    def fail(tensors, path, metadata):
        save_file(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:1000])
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        next(steps)
    assert content(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]
    monkeypatch.undo()
    assert [step.epoch for step in run(few, config, tmp_path, resume=True)] == [2]


def test_a_checkpoint_holds_the_model(few, tmp_path):
    (*_, last) = train(*few, Config(epochs=1, batch_size=48), tmp_path)
    model, config, history = load(tmp_path)
    assert config == Config(epochs=1, batch_size=48)
    assert history[0]["temperature"] == last.temperature
    assert evaluate(model, few[1]) == last.recalls


def test_resuming_needs_the_same_run(few, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: `mmkernels train clip"):
        run(few, Config(), tmp_path, resume=True)
    run(few, Config(epochs=1, batch_size=96), tmp_path)
    with pytest.raises(ValueError, match=r"has epochs 1, not 2 and lr 0\.\d+, not 0\.5"):
        run(few, Config(epochs=2, batch_size=96, lr=0.5), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_bad_configs(option, message):
    with pytest.raises(ValueError, match=message):
        Config(**option)


def test_a_loss_that_is_not_finite_stops_the_run(few, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "backward", lambda *args: torch.tensor(math.nan))
    with pytest.raises(RuntimeError, match="the loss is nan in epoch 1: try a smaller --lr"):
        run(few, Config(epochs=1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_learns(icons, tmp_path):
    """A few seconds on 300 icons; recall among the training icons, far above chance."""
    training = icons.select(split(icons).train[:300])
    untrained = evaluate(CLIP(), training)
    steps = run((training, training), Config(epochs=8, batch_size=30), tmp_path)
    assert steps[-1].loss < 0.7 * steps[0].loss
    for before, after in zip(untrained, steps[-1].recalls, strict=True):
        assert before[2] < 0.08  # chance is 0.03
        assert after[2] > 0.5
    x, y = embed(load(tmp_path)[0], training)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(y.norm(dim=1), torch.ones(300))


def test_duplicates_are_no_negatives():
    """Six weights of one icon in a batch: the loss does not push them apart."""
    x = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    assert info_nce(x, x, scale=10.0, ids=name_ids(["airplane"] * 6)).item() == 0


def test_select(icons):
    picked = icons.select(torch.tensor([5, 2]))
    assert isinstance(picked, Icons)
    assert picked.names == [icons.names[5], icons.names[2]]
    assert torch.equal(picked.images[0], icons.images[5])
