"""Data: every source, every kind of broken input, no copy on both sides, and the same batches from the same seed."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torchvision.transforms import v2

from gradlens.config import AUGMENTATIONS, make_config
from gradlens.data import load_data, make_batches
from gradlens.data.copies import find_copies
from gradlens.data.images import grey_differences, open_image
from gradlens.data.loaders import make_augmentation
from gradlens.data.patterns import CLASSES, make_patterns
from gradlens.data.registry import FileImages
from gradlens.data.split import split_groups, split_random
from gradlens.data.tables import ImageFile, read_csv, read_folder
from gradlens.errors import DataError
from gradlens.events import Note
from gradlens.specs import TORCHVISION_SETS
from tests.conftest import save_picture


def config(data: str, **options):
    return make_config("plain20", data=data, image_size=32, batch_size=4, **options)


# --- patterns ---------------------------------------------------------------------------------------------


def test_patterns_depend_on_the_seed_alone() -> None:
    first, labels = make_patterns(20, 32, 5, 0)
    again, _ = make_patterns(20, 32, 5, 0)
    assert first.shape == (20, 3, 32, 32)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.bincount(labels).tolist() == [4] * len(CLASSES)
    for other in (make_patterns(20, 32, 6, 0)[0], make_patterns(20, 32, 5, 1)[0]):
        assert not (other == first).all(axis=(1, 2, 3)).any()


def test_patterns_are_no_copies_of_each_other() -> None:
    splits = load_data(config("patterns"))
    both = torch.cat([splits.train.images[:], splits.val.images[:]]).flatten(1)
    assert len(torch.unique(both, dim=0)) == len(both)
    assert splits.facts["train_images"] == len(splits.train)


# --- tables -----------------------------------------------------------------------------------------------


def write_csv(photos: Path, rows: list[str], header: str = "filename,label") -> Path:
    path = photos / "train.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


GOOD = [f"{label}/{i}.png,{label}" for label in ("cat", "dog") for i in range(6)]


def test_a_folder_of_classes(photos: Path) -> None:
    splits = load_data(config(f"folder:{photos}"))
    assert splits.classes == ("cat", "dog")
    assert len(splits.train) + len(splits.val) == 12
    assert torch.bincount(splits.val.labels).tolist() == [1, 1]
    assert splits.train.images[[0]].shape == (1, 3, 32, 32)


def test_a_folder_with_train_and_val_is_taken_as_it_is(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "all" / "train")
    shutil.copytree(photos / "cat", tmp_path / "all" / "val" / "cat")
    splits = load_data(config(f"folder:{tmp_path / 'all'}"))
    assert (len(splits.train), len(splits.val)) == (12, 6)
    assert splits.facts["val_share_exact_copy_in_train"] == 1.0
    (tmp_path / "all" / "val" / "bird").mkdir()
    shutil.copy(photos / "cat" / "0.png", tmp_path / "all" / "val" / "bird" / "0.png")
    with pytest.raises(DataError, match=r"bird.*0\.png: unknown label 'bird'.*cat, dog"):
        load_data(config(f"folder:{tmp_path / 'all'}"))


def test_a_csv_with_images_beside_it_or_in_a_folder_named_like_it(photos: Path, tmp_path: Path) -> None:
    path = write_csv(photos, GOOD)
    assert len(read_csv(path).files) == 12
    shutil.copytree(photos, tmp_path / "train")
    elsewhere = tmp_path / "train.csv"
    shutil.copy(path, elsewhere)
    assert all(file.path.is_file() for file in read_csv(elsewhere).files)
    by_csv, by_folder = load_data(config(f"csv:{path}")), load_data(config(f"folder:{photos}"))
    assert torch.equal(by_csv.train.images[:], by_folder.train.images[:])


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([], "filename,label", "names no image"),
        (GOOD, "file,class", "no column filename and no column label; expected filename,label, got file,class"),
        ([*GOOD, "cat/0.png,"], "filename,label", r"train\.csv, row 14: cat/0\.png has no label"),
        ([*GOOD, ",cat"], "filename,label", r"row 14: the filename is empty"),
        ([*GOOD[:3], "", "", *GOOD[3:], "x.png,"], "filename,label", r"row 16: x\.png has no label"),
        (GOOD[:6], "filename,label", "one class only, 'cat'"),
        ([*GOOD[:6], GOOD[6]], "filename,label", r"row 8: dog/0\.png: class 'dog' has one image only"),
    ],
)
def test_a_wrong_table_names_the_file_and_the_row(photos: Path, rows: list[str], header: str, said: str) -> None:
    path = write_csv(photos, rows, header)
    with pytest.raises(DataError, match=said):
        read_csv(path)


def test_what_is_no_table_or_folder_says_so(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_csv(photos / "none.csv")
    (photos / "x.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="is not a CSV table"):
        read_csv(photos / "x.csv")
    with pytest.raises(DataError, match="there is no such folder"):
        read_folder(tmp_path / "none")
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the class is empty"):
        read_folder(photos)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="holds no folders"):
        read_folder(tmp_path / "bare")


@pytest.mark.parametrize("kind", ["missing", "text", "truncated"])
def test_a_broken_image_is_named_or_passed_over(photos: Path, kind: str) -> None:
    path = write_csv(photos, GOOD)
    broken = photos / "cat" / "3.png"
    if kind == "missing":
        broken.unlink()
    elif kind == "text":
        broken.write_text("hello")
    else:
        broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train\.csv, row 5: cat/3\.png: the image") as caught:
        load_data(config(f"csv:{path}"))
    assert "--skip-broken" in (caught.value.tip or "")
    said: list[Note] = []
    splits = load_data(config(f"csv:{path}", skip_broken=True), said.append)
    assert len(splits.train) + len(splits.val) == 11
    assert splits.facts["broken_skipped"] == 1
    assert any(note.warning and "1 broken image" in note.text for note in said)


def test_a_class_with_nothing_left_says_so(photos: Path) -> None:
    for i in range(5):
        (photos / "cat" / f"{i}.png").write_text("hello")
    with pytest.raises(DataError, match="class 'cat' has 1 usable image"):
        load_data(config(f"folder:{photos}", skip_broken=True))


def test_images_that_do_not_fit_in_memory_give_the_same_batches(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_data(config(f"folder:{photos}"))
    monkeypatch.setattr("gradlens.data.registry.free_memory", lambda: 1000.0)
    files = load_data(config(f"folder:{photos}"))
    assert isinstance(files.train.images, FileImages)
    assert torch.equal(files.train.images[[0, 3]], kept.train.images[[0, 3]])


# --- copies and splits ------------------------------------------------------------------------------------


def test_exact_and_near_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    originals = []
    for i in range(6):
        save_picture(tmp_path / f"{i}.png", rng, 120)
        originals.append(Image.open(tmp_path / f"{i}.png").convert("RGB"))
    near = ImageEnhance.Brightness(originals[0].resize((80, 84))).enhance(0.8).crop((1, 1, 79, 83))
    flat = [Image.new("RGB", (50, 50), colour) for colour in ("white", "black")]
    images = [*originals, originals[1], near, *flat]
    digests = [str(i).encode() for i in range(6)] + [b"1", b"near", b"flat1", b"flat2"]
    copies = find_copies(digests, np.stack([grey_differences(image) for image in images]))
    assert copies.group.tolist() == [0, 1, 2, 3, 4, 5, 1, 0, 8, 9]
    assert copies.exact.tolist() == [0, 1, 2, 3, 4, 5, 1, 7, 8, 9]
    assert (copies.exact_groups, copies.exact_files, copies.near_files, copies.different) == (1, 2, 1, 8)
    assert copies.shared(np.array([0, 1, 2]), np.array([6, 7, 8])) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_one_backdrop_does_not_make_copies() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:120, 0:120] / 120
    originals = []
    for _ in range(30):
        backdrop = 120 + 80 * x + 40 * y
        left, top, width, height = rng.integers(10, 60, 4)
        backdrop[top : top + height, left : left + width] = rng.integers(0, 255)
        originals.append(Image.fromarray(backdrop.astype(np.uint8)).convert("RGB"))
    copies = find_copies([bytes([i]) for i in range(30)], np.stack([grey_differences(p) for p in originals]))
    assert copies.different >= 25


@pytest.mark.parametrize(("rows", "said"), [(8, "no validation images are left"), (12, None)])
def test_a_class_of_copies_alone_is_said(photos: Path, rows: int, said: str | None) -> None:
    for label in ("cat", "dog"):
        for i in range(1, 6):
            if label == "cat" or said:
                shutil.copy(photos / label / "0.png", photos / label / f"{i}.png")
    if said:
        with pytest.raises(DataError, match=said):
            load_data(config(f"folder:{photos}"))
    else:
        notes: list[Note] = []
        splits = load_data(config(f"folder:{photos}"), notes.append)
        assert set(splits.val.labels.tolist()) == {1}
        assert any("no validation image of class cat" in note.text for note in notes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_group_stands_on_one_side_and_every_class_on_both(data: st.DataObject) -> None:
    count = data.draw(st.integers(10, 80))
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    groups = np.array(data.draw(st.lists(st.integers(0, count // 2), min_size=count, max_size=count))) * 3 + labels
    train, val = split_groups(labels, groups, 0.25, data.draw(st.integers(0, 5)))
    assert sorted([*train, *val]) == list(range(count))
    assert not set(groups[train]) & set(groups[val])
    for label in np.unique(labels):
        if len(np.unique(groups[labels == label])) > 1:
            assert label in labels[train]
            assert label in labels[val]


def test_a_random_split_holds_out_the_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [220, 215, 234, 227, 212])
    train, val = split_random(labels, 0.2, 0)
    assert (len(train), len(val)) == (886, 222)  # as in the report
    assert np.abs(np.bincount(labels[val]) - np.bincount(labels) * 0.2).max() < 1
    np.testing.assert_array_equal(val, split_random(labels, 0.2, 0)[1])
    assert not np.array_equal(val, split_random(labels, 0.2, 1)[1])


def test_copies_stay_on_one_side_unless_asked_otherwise(photos: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(6):
            for copy in "abc":
                shutil.copy(photos / label / f"{i}.png", photos / label / f"{i}{copy}.png")
    said: list[Note] = []
    grouped = load_data(config(f"folder:{photos}"), said.append)
    assert grouped.facts["val_share_any_copy_in_train"] == 0
    assert grouped.facts["different_pictures"] == 12
    assert "48 files in 12 groups of exact copies" in said[0].text
    random = load_data(config(f"folder:{photos}", split="random"), said.append)
    assert random.facts["val_share_exact_copy_in_train"] > 0.5
    assert said[-1].warning
    assert "partly memory" in said[-1].text


# --- batches ----------------------------------------------------------------------------------------------


@functools.cache
def few_patterns():
    splits = load_data(config("patterns"))
    splits.train.images = splits.train.images[:33]
    splits.train.labels = splits.train.labels[:33]
    return splits


def batches(seed: int = 0, workers: int = 0, augment=AUGMENTATIONS):
    splits = few_patterns()
    return make_batches(
        splits.train, splits.val, batch_size=8, seed=seed, augment=augment, side=32, workers=workers
    )  # fmt: skip


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    first = [list(batches()[0].epoch(e)) for e in (1, 2)]
    train, _ = batches()
    again = {e: list(train.epoch(e)) for e in (2, 1)}  # in another order
    for e in (1, 2):
        for (x, y), (x2, y2) in zip(first[e - 1], again[e], strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
    assert not torch.equal(first[0][0][0], first[1][0][0])
    orders = [next(iter(batches(seed=seed, augment=())[0].epoch(1)))[0] for seed in (0, 1)]
    assert not torch.equal(*orders)
    augmented = [batches(seed=seed, augment=("color",))[0] for seed in (0, 1)]
    sums = [sorted(x.sum().item() for x in torch.cat([x for x, _ in b.epoch(1)])) for b in augmented]
    assert sums[0] != sums[1]
    assert sum(len(y) for _, y in first[0]) == 32  # the last batch of one is left out
    assert first[0][0][0].dtype == torch.float32


@pytest.mark.slow
def test_batches_are_the_same_with_workers() -> None:
    alone, helped = batches()[0], batches(workers=2)[0]
    for e in (1, 2):
        for (x, _), (x2, _) in zip(alone.epoch(e), helped.epoch(e), strict=True):
            assert torch.equal(x, x2)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_changes_only_training_images(name: str) -> None:
    train, val = batches(augment=(name,))
    plain_train, plain_val = batches(augment=())
    images, bare = (torch.cat([x for x, _ in b.epoch(1)]) for b in (train, plain_train))
    assert images.shape == bare.shape
    assert not torch.equal(images, bare)
    assert torch.equal(next(iter(val.epoch(0)))[0], next(iter(plain_val.epoch(0)))[0])


def test_augmentation_leaves_the_global_random_state_alone() -> None:
    train, _ = batches()
    before = torch.get_rng_state()
    list(train.epoch(1))
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    list(batches(augment=())[0].epoch(1))
    assert torch.equal(torch.get_rng_state(), after)  # the loader itself may draw; the augmentation does not


# --- torchvision ------------------------------------------------------------------------------------------


class TinySet:
    """A stand-in for a downloaded set."""

    classes = ("a", "b")

    def __init__(self, root, download, train=True, split="train") -> None:
        rng = np.random.default_rng(0)
        self.targets = [0, 1, 0, 1, 1]
        self.images = [Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)) for _ in self.targets]

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int):
        return self.images[i], self.targets[i]


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_torchvision_sets_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{TORCHVISION_SETS[name]}", TinySet)
    splits = load_data(config(name))
    assert splits.classes == ("a", "b")
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 1]
    assert splits.train.images[[0, 1]].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_without_a_network_one_line_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments, **options):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match=f"{name} is not in .* and could not be downloaded") as caught:
        load_data(config(name))
    assert "--data patterns" in (caught.value.tip or "")
    assert "\n" not in caught.value.message


# --- data of a stranger ---------------------------------------------------------------------------------------


def write_table(photos: Path, *more: str) -> Path:
    rows = [f"{label}/{i}.png,{label}" for label in ("cat", "dog") for i in range(6)]
    table = photos / "labels.csv"
    table.write_text("\n".join(["filename,label", *rows, *more]) + "\n")
    return table


@pytest.mark.parametrize("name", ["/dev/zero", "../outside.png", "cat/../../outside.png", "link.png", "linked/0.png"])
def test_rows_of_a_table_stay_inside_its_folder(name: str, photos: Path) -> None:
    outside = photos.parent / "outside.png"
    shutil.copy(photos / "cat" / "0.png", outside)
    (photos / "link.png").symlink_to(outside)
    shutil.copytree(photos / "cat", photos.parent / "elsewhere")
    (photos / "linked").symlink_to(photos.parent / "elsewhere")
    table = write_table(photos, f"{name},cat")
    with pytest.raises(DataError, match=r"row 14: .* lies outside of the folder of the table"):
        read_csv(table)
    assert len(read_csv(table, allow_outside=True).files) == 13


def test_only_plain_files_are_images(photos: Path) -> None:
    os.mkfifo(photos / "cat" / "pipe.png")
    assert len(read_folder(photos).files) == 12
    for name in ("cat/pipe.png", "/dev/zero"):
        file = ImageFile(photos / name, "cat", "row 1")
        with pytest.raises(DataError, match="row 1: the image is no plain file"):
            open_image(file)


def test_a_pipe_or_a_device_in_a_table_is_named_as_one(photos: Path) -> None:
    os.mkfifo(photos / "cat" / "pipe.png")
    (photos / "cat" / "zero.png").symlink_to("/dev/zero")
    file = next(file for file in read_csv(write_table(photos, "cat/pipe.png,cat")).files if "pipe" in file.path.name)
    with pytest.raises(DataError, match=r"row 14: cat/pipe.png: the image is no plain file"):
        open_image(file)
    with pytest.raises(DataError, match=r"row 14: cat/zero.png lies outside"):
        read_csv(write_table(photos, "cat/zero.png,cat"))
    for path, said in (
        (photos / "cat" / "pipe.png", "a pipe, a socket or a device"),
        (Path("/dev/zero"), "a pipe"),
        (photos, "a folder"),
    ):
        with pytest.raises(DataError, match=f"{path}: it is {said}.*; expected a file"):
            read_csv(path)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(DataError, match="row 1: the image has 9,000 x 9,000 pixels, at most 64,000,000 are decoded"):
        open_image(ImageFile(path, "cat", "row 1"))


def test_files_of_macos_are_passed_over_and_counted(photos: Path) -> None:
    (photos / "__MACOSX" / "cat").mkdir(parents=True)
    for name in ("__MACOSX/cat/._0.png", "cat/._0.png", "dog/.hidden.png"):
        (photos / name).write_bytes(b"no image")
    table = read_folder(photos)
    assert table.classes == ("cat", "dog")
    assert (len(table.files), table.passed_over) == (12, 3)
    said: list[object] = []
    load_data(make_config("plain8", data=f"folder:{photos}", image_size=16, batch_size=4), said.append)
    assert any("3 hidden files passed over" in getattr(note, "text", "") for note in said)


def test_one_image_under_two_labels_is_said(photos: Path) -> None:
    shutil.copy(photos / "cat" / "0.png", photos / "dog" / "9.png")
    said: list[object] = []
    load_data(make_config("plain8", data=f"folder:{photos}", image_size=16, batch_size=4), said.append)
    (text,) = [note.text for note in said if "two labels" in getattr(note, "text", "")]  # type: ignore[attr-defined]
    assert re.search(
        r"1 image with two labels, first: .*cat/0\.png is 'cat', and the same image .*dog/9\.png is 'dog'", text
    )


def test_a_name_that_is_none_ends_in_a_line(photos: Path) -> None:
    with pytest.raises(DataError, match="row 14"):
        read_csv(write_table(photos, f"{'x' * 5000}.png,cat"))


def test_the_flip_is_that_of_torchvision_with_its_random_numbers() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    ours, theirs = make_augmentation(["flip"], 4), v2.RandomHorizontalFlip()
    flipped = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mine, after = ours(images[0]), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(mine, theirs(images[0]))
        assert torch.equal(after, torch.rand(1))
        flipped += not torch.equal(mine, images[0])
    assert 0 < flipped < 20
