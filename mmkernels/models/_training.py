"""Training of `clip` on icons: the loop, and checkpoints from which a run continues as if it had never stopped.

What is random in an epoch follows from the seed and the epoch's number alone: a checkpoint needs no random state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkernels.data._files import needs_extra, write_atomically
from mmkernels.data.icons import Icons, name_ids
from mmkernels.models._recall import KS
from mmkernels.models.clip import CLIP, MICRO_BATCH, backward, tokenize
from mmkernels.ops.retrieval import recall_at_k

CHECKPOINT = "checkpoint.safetensors"
_WARM_UP = 0.15  # share of the steps
_WEIGHT_DECAY = 0.1
_TOKEN_DROPOUT = 0.15


@dataclass(frozen=True)
class Config:
    """What decides the result of a run, besides the icons."""

    epochs: int = 8
    batch_size: int = 512
    lr: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (other pairs are the negatives), got {self.batch_size}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")


class Recalls(NamedTuple):
    """Recall@1, 5, 10 in both directions, each in [0, 1]."""

    image_to_text: list[float]
    text_to_image: list[float]


class Step(NamedTuple):
    """Where a run stands after a step."""

    epoch: int
    """Epochs begun, the current one included."""
    done: int
    """Steps done since the run's first."""
    total: int
    loss: float
    temperature: float
    images: int
    """Images in this step's batch."""
    recalls: Recalls | None
    """On the validation icons, after an epoch's last step."""


def train(
    training: Icons, validation: Icons, config: Config, out: Path, device: str = "cpu", resume: bool = False
) -> Iterator[Step]:
    """Train a CLIP, a step at each turn of the iterator, and save a checkpoint in `out` after each epoch.

    AdamW; the learning rate rises over the first 15 % of the steps and falls to zero along a cosine. An epoch's batches
    are of nearly equal size, at most batch_size, and leave no icon out; any size up to the whole set fits in memory.

    Args:
        training: the icons to learn from.
        validation: the icons to measure recall on after each epoch.
        config: what decides the result.
        out: directory, made if missing; a checkpoint in it is replaced after the first epoch.
        device: where to train.
        resume: go on from the checkpoint in `out` instead, bit for bit (same machine and threads) as if it had never
            stopped. A finished run has no step left.

    Raises:
        FileNotFoundError: nothing to resume.
        ValueError: resume with another config than the run's.
        RuntimeError: the loss is no longer finite.
    """
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = CLIP()
    model = model.to(device).train()
    optimizer = _optimizer(model)
    if resume:
        history = _restore(out, config, model, optimizer)
    images, tokens, ids = (t.to(device) for t in (training.images, tokenize(training.names), name_ids(training.names)))
    batches = -(-len(images) // config.batch_size)
    total = config.epochs * batches
    for epoch in range(len(history), config.epochs):
        generator = torch.Generator().manual_seed(config.seed + 2**32 * epoch)
        order = torch.randperm(len(images), generator=generator).to(device)
        losses = []
        for step, rows in enumerate(torch.tensor_split(order, batches), epoch * batches):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule(step, total)
            optimizer.zero_grad()
            loss = backward(model, _augment(images[rows], generator), _drop(tokens[rows], generator), ids[rows])
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise RuntimeError(
                    f"the loss is {losses[-1]} in epoch {epoch + 1}: try a smaller --lr than {config.lr:g}"
                )
            at = Step(epoch + 1, step + 1, total, losses[-1], 1 / model.scale().item(), len(rows), None)
            if len(losses) < batches:
                yield at
        recalls = evaluate(model, validation)
        history.append({"loss": sum(losses) / batches, "temperature": at.temperature, **recalls._asdict()})
        _save(out, config, model, optimizer, history)
        yield at._replace(recalls=recalls)


def evaluate(model: CLIP, icons: Icons) -> Recalls:
    """Return the recall with all icons as candidates; every icon of the right name is a right answer."""
    x, y = embed(model, icons)
    ids = name_ids(icons.names)
    rows, columns = recall_at_k(x, y, KS, ids=ids.to(x.device))
    return Recalls(rows.tolist(), columns.tolist())


@torch.no_grad()
def embed(model: CLIP, icons: Icons) -> tuple[Tensor, Tensor]:
    """Return the embeddings (N, 128) of the images and of the names, made in evaluation mode."""
    training = model.training
    model.eval()
    device, tokens = model.log_scale.device, tokenize(icons.names)
    parts = [slice(i, i + MICRO_BATCH) for i in range(0, len(tokens), MICRO_BATCH)]
    embedded = [model(_ink(icons.images[part].to(device)), tokens[part].to(device)) for part in parts]
    model.train(training)
    x, y = (torch.cat(side) for side in zip(*embedded, strict=True))
    return x, y


def load(out: Path, device: str = "cpu") -> tuple[CLIP, Config, list[dict[str, Any]]]:
    """Return the model of the checkpoint in `out`, in evaluation mode, its config, and a record of each epoch.

    Raises:
        FileNotFoundError: there is none.
    """
    tensors, config, history = _read(out)
    model = CLIP()
    model.load_state_dict(_named(tensors, "model."))
    return model.to(device).eval(), config, history


def _ink(images: Tensor) -> Tensor:
    return images.float() / 255


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 32, 32) uint8 as floats, each scaled by up to 8 % and shifted by up to one pixel."""
    N = len(images)
    random = 2 * torch.rand(N, 3, generator=generator) - 1
    scale, shift = 0.08 * random[:, :1], 0.06 * random[:, 1:]
    zoom = (1 + scale[:, :, None]) * torch.eye(2)
    grid = F.affine_grid(torch.cat((zoom, shift[:, :, None]), 2), [N, 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(_ink(images)[:, None], grid.to(images.device), align_corners=False)[:, 0]


def _drop(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens with a share of them, words and trigrams alike, replaced by padding."""
    return tokens * (torch.rand(tokens.shape, generator=generator) >= _TOKEN_DROPOUT).to(tokens.device)


def _schedule(step: int, total: int) -> float:
    """Factor of the learning rate: linear rise, then half a cosine down to (almost) zero. In (0, 1]."""
    warm_up = max(1, round(_WARM_UP * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step + 1 - warm_up) / (total + 1 - warm_up))) / 2


def _optimizer(model: CLIP) -> torch.optim.AdamW:
    """AdamW that decays weight matrices only: not the embedding table, whose rows see few gradients, nor vectors."""
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not model.words.weight]
    others = [p for p in model.parameters() if p.ndim <= 1 or p is model.words.weight]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    )


def _save(out: Path, config: Config, model: CLIP, optimizer: torch.optim.AdamW, history: list[dict[str, Any]]) -> None:
    """Write everything to one file, so that there is no moment at which its parts disagree."""
    with needs_extra("train"):
        from safetensors.torch import save_file
    state = optimizer.state_dict()["state"]
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"optimizer.{i}.{name}": t for i, moments in state.items() for name, t in moments.items()}
    with write_atomically(out / CHECKPOINT) as temporary:
        metadata = {"config": json.dumps(asdict(config)), "history": json.dumps(history)}
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def _read(out: Path) -> tuple[dict[str, Tensor], Config, list[dict[str, Any]]]:
    with needs_extra("train"):
        from safetensors import safe_open
    path = out / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: `mmkernels train clip --out {out}` makes it")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    return tensors, Config(**json.loads(metadata["config"])), json.loads(metadata["history"])


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _restore(out: Path, config: Config, model: CLIP, optimizer: torch.optim.AdamW) -> list[dict[str, Any]]:
    """Put the checkpoint's weights and moments in place; return its history, a record an epoch."""
    tensors, saved, history = _read(out)
    if saved != config:
        values = asdict(config).items()
        changed = [
            f"{name} {getattr(saved, name)}, not {value}" for name, value in values if getattr(saved, name) != value
        ]
        raise ValueError(f"the run in {out} has {' and '.join(changed)}: resume it as it is, or start another run")
    model.load_state_dict(_named(tensors, "model."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in _named(tensors, "optimizer.").items():
        index, moment = name.split(".")
        state.setdefault(int(index), {})[moment] = t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return history
