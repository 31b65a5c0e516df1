"""Lists of image files with labels: from folders of classes and from CSV tables."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gradlens.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Picture:
    """One image file and its label.

    Args:
        path: The file.
        label: The class's name.
        where: How an error names it: the table and row, or the file.
    """

    path: Path
    label: str
    where: str


@dataclass(frozen=True)
class Table:
    """Pictures with their classes, and validation pictures where the data has its own."""

    pictures: list[Picture]
    classes: tuple[str, ...]
    validation: list[Picture] | None = None


def read_csv(path: Path) -> Table:
    """Read a table with the columns ``filename,label``; images lie beside it or in a folder named like it.

    Raises:
        DataError: A column, a label or an image is missing, or there are fewer than two classes.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", tip="--data csv:FILE with the columns filename,label")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in ("filename", "label") if name not in columns]
            if missing:
                raise DataError(
                    f"{path}: no column {' and no column '.join(missing)}; expected filename,label, got "
                    f"{','.join(columns) or 'an empty file'}"
                )
            rows = [(reader.line_num, _strip_keys(row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV table: {error}") from None
    folders = (path.parent, path.with_suffix(""))
    pictures = [_csv_picture(path, number, row, folders) for number, row in rows]
    return Table(pictures, _check_classes(path, pictures))


def _strip_keys(row: dict[str, str]) -> dict[str, str]:
    return {(key or "").strip(): value for key, value in row.items() if isinstance(value, str)}


def _csv_picture(table: Path, number: int, row: dict[str, str], folders: tuple[Path, ...]) -> Picture:
    where = f"{table}, row {number}"
    filename, label = row.get("filename", "").strip(), row.get("label", "").strip()
    if not filename:
        raise DataError(f"{where}: the filename is empty")
    if not label:
        raise DataError(f"{where}: {filename} has no label")
    found = next((folder / filename for folder in folders if (folder / filename).is_file()), folders[-1] / filename)
    return Picture(found, label, f"{where}: {filename}")


def read_folder(path: Path) -> Table:
    """Read a folder with one folder of images per class, or with train/ and val/ (or test/) of that kind.

    Raises:
        DataError: A folder is missing or holds no image, or there are fewer than two classes.
    """
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder", tip="--data folder:PATH with one folder per class")
    training = path / "train"
    if not training.is_dir():
        pictures = _class_folders(path)
        return Table(pictures, _check_classes(path, pictures))
    pictures = _class_folders(training)
    classes = _check_classes(training, pictures)
    held = next((path / name for name in VALIDATION_NAMES if (path / name).is_dir()), None)
    if held is None:
        return Table(pictures, classes)
    validation = _class_folders(held)
    for picture in validation:
        if picture.label not in classes:
            raise DataError(f"{picture.where}: unknown label {picture.label!r}; {training} has {', '.join(classes)}")
    return Table(pictures, classes, validation)


def _class_folders(path: Path) -> list[Picture]:
    pictures: list[Picture] = []
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not folders:
        raise DataError(f"{path} holds no folders; expected one folder of images per class")
    for folder in folders:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS and file.is_file())
        if not files:
            raise DataError(f"{folder}: the class is empty; expected images ({' '.join(IMAGE_ENDINGS[:4])} ...)")
        pictures += [Picture(file, folder.name, str(file)) for file in files]
    return pictures


def _check_classes(path: Path, pictures: list[Picture]) -> tuple[str, ...]:
    if not pictures:
        raise DataError(f"{path} names no image")
    counts = Counter(picture.label for picture in pictures)
    if len(counts) < 2:
        raise DataError(f"{path} has one class only, {next(iter(counts))!r}; expected at least two")
    for label, count in sorted(counts.items()):
        if count < 2:
            only = next(picture for picture in pictures if picture.label == label)
            raise DataError(f"{only.where}: class {label!r} has one image only; expected at least two, one to hold out")
    return tuple(sorted(counts))
