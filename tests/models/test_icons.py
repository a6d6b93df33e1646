"""The icon-name pairs: what is in them, the cache, and a split from which no name leaks."""

import importlib.metadata

import pytest
import torch

from mmkernels.data import Icons, load_icons, name_ids, split
from mmkernels.data import icons as module
from mmkernels.data._files import write_atomically


def test_every_font_is_there(icons):
    assert icons.images.shape == (17040, 32, 32)
    assert icons.images.dtype == torch.uint8
    counts = dict(zip(icons.font_names, icons.fonts.bincount().tolist(), strict=True))
    assert counts == {
        "Material Design Icons 6": 7367,
        "Phosphor": 4470,
        "Remix Icon": 2271,
        "Font Awesome 6": 2060,
        "Codicons": 568,
        "Elusive Icons": 304,
    }
    assert "account alert outline" in icons.names
    assert icons.names.count("airplane") == 6  # one of Material Design, five weights of Phosphor


def test_glyphs_fill_the_square_and_are_centred(icons):
    ink = icons.images > 0
    for side in (1, 2):
        lines = ink.any(side).int()
        first, last = lines.argmax(1), 31 - lines.flip(1).argmax(1)
        assert (lines.sum(1) > 0).all()
        assert (first >= 1).all()
        assert (last <= 30).all()
        assert ((first + last - 31).abs() <= 3).all()
    longest = torch.maximum(ink.any(1).sum(1), ink.any(2).sum(1))
    assert (longest >= 26).float().mean() > 0.99


def test_the_cache_equals_a_fresh_rendering(icons, icon_cache, monkeypatch):
    monkeypatch.setattr(module, "_render", lambda *args: pytest.fail("the cache was not read"))
    cached = load_icons(icon_cache)
    assert torch.equal(cached.images, icons.images)
    assert cached.names == icons.names
    assert torch.equal(cached.fonts, icons.fonts)
    assert cached.font_names == icons.font_names
    assert len(list(icon_cache.iterdir())) == 1  # one file, and nothing temporary beside it


def test_a_damaged_cache_is_made_again(icons, tmp_path, monkeypatch):
    small = Icons(icons.images[:3], icons.names[:3], icons.fonts[:3], icons.font_names)
    monkeypatch.setattr(module, "_render", lambda *args: small)
    load_icons(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert load_icons(tmp_path).names == small.names
    assert file.stat().st_size > 100


def test_no_name_is_in_two_parts(icons):
    parts = split(icons)
    names = [{icons.names[i] for i in part.tolist()} for part in parts]
    assert [len(parts.validation), len(parts.test)] == [1000, 1000]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert (icons.fonts[parts.test] == 0).all()
    # whatever is in no part has a held-out name
    unused = set(range(len(icons.names))) - {i for part in parts for i in part.tolist()}
    assert unused
    assert {icons.names[i] for i in unused} <= names[1] | names[2]


def test_a_split_repeats_and_follows_its_seed(icons):
    assert all(torch.equal(a, b) for a, b in zip(split(icons), split(icons), strict=True))
    assert not torch.equal(split(icons).test, split(icons, seed=1).test)
    with pytest.raises(ValueError, match="held_out must be in"):
        split(icons, held_out=4000)


def test_name_ids():
    ids = name_ids(["bell", "bell off", "bell"])
    assert ids.tolist() == [0, 1, 0]
    assert ids.dtype == torch.int64


def test_without_the_wheel_the_error_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match=r"qtawesome is missing: pip install 'mmkernels\[train\]'"):
        load_icons(tmp_path)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("old")

    def fail():
        with write_atomically(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
