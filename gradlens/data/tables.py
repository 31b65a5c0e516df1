"""Read lists of labelled image files from folders of classes and from CSV tables."""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gradlens.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_NAMES = ("val", "valid", "validation", "test")
MACOS_FOLDER = "__MACOSX"
"""What macOS adds to an archive: for each image a file with its name that is no image."""


MOST_SHOWN = 400
"""Characters of a message about a name that is too long."""


@dataclass(frozen=True)
class ImageFile:
    """One image file and its label.

    Args:
        path: The file.
        label: The name of the class.
        where: Its name in errors: the table and row, or the file.
    """

    path: Path
    label: str
    where: str


@dataclass(frozen=True)
class Table:
    """Image files with their classes, and validation files if the data has its own."""

    files: list[ImageFile]
    classes: tuple[str, ...]
    validation: list[ImageFile] | None = None
    passed_over: int = 0
    """Hidden files, and files of macOS (``__MACOSX``, ``._NAME``), that would be images by their names."""


def read_csv(path: Path, *, allow_outside: bool = False) -> Table:
    """Read a table with the columns ``filename,label``.

    Args:
        path: The CSV file; the images are in its folder, or in a folder with the name of the file without ".csv".
        allow_outside: Whether a row may name a file outside of these folders.

    Returns:
        The image files and their classes.

    Raises:
        DataError: The file cannot be read, a column, a file name or a label is missing, a row names a file outside, or
            there are fewer than two classes.
    """
    if not path.is_file():
        said = "there is no such file"
        if path.exists():
            said = f"it is {'a folder' if path.is_dir() else 'a pipe, a socket or a device'}; expected a file"
        raise DataError(f"{path}: {said}", tip="--data csv:FILE with the columns filename,label")
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
    walls = None if allow_outside else Walls(folders)
    files = [_csv_file(path, number, row, folders, walls) for number, row in rows]
    return Table(files, _check_classes(path, files))


def _strip_keys(row: dict[str, str]) -> dict[str, str]:
    return {(key or "").strip(): value for key, value in row.items() if isinstance(value, str)}


class Walls:
    """Folders whose files may be read, links resolved; each folder of a table of a million rows is resolved once."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._inside = tuple(os.path.realpath(folder) + os.sep for folder in folders)
        self._real: dict[str, str] = {}

    def hold(self, path: Path) -> bool:
        """Return whether a file, or what it leads to, lies in the folders."""
        folder, name = os.path.split(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        link = name in ("", ".", "..") or os.path.islink(path)
        real = os.path.realpath(path) if link else os.path.join(self._real[folder], name)
        return real.startswith(self._inside)


def _csv_file(
    table: Path, number: int, row: dict[str, str], folders: tuple[Path, ...], walls: Walls | None
) -> ImageFile:
    where = f"{table}, row {number}"
    filename, label = row.get("filename", "").strip(), row.get("label", "").strip()
    if not filename:
        raise DataError(f"{where}: the filename is empty")
    if not label:
        raise DataError(f"{where}: {filename} has no label")
    try:
        found = next((folder / filename for folder in folders if (folder / filename).exists()), folders[-1] / filename)
        outside = walls is not None and not walls.hold(found)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the filename is no name of a file ({error})"[:MOST_SHOWN]) from None
    if outside:
        raise DataError(
            f"{where}: {filename} lies outside of the folder of the table, {folders[0]}; expected a file inside",
            tip="--allow-outside trains with such files too",
        )
    return ImageFile(found, label, f"{where}: {filename}")


def read_folder(path: Path) -> Table:
    """Read a folder that contains one folder of images per class.

    Args:
        path: The folder; it may instead contain train/ and val/ (or test/), each with one folder per class.

    Returns:
        The image files and their classes.

    Raises:
        DataError: A folder is missing or contains no image, or there are fewer than two classes.
    """
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder", tip="--data folder:PATH with one folder per class")
    training = path / "train"
    if not training.is_dir():
        files, passed_over = _class_folders(path)
        return Table(files, _check_classes(path, files), None, passed_over)
    files, passed_over = _class_folders(training)
    classes = _check_classes(training, files)
    held = next((path / name for name in VALIDATION_NAMES if (path / name).is_dir()), None)
    if held is None:
        return Table(files, classes, None, passed_over)
    validation, more = _class_folders(held)
    for file in validation:
        if file.label not in classes:
            raise DataError(f"{file.where}: unknown label {file.label!r}; {training} has {', '.join(classes)}")
    return Table(files, classes, validation, passed_over + more)


def _class_folders(path: Path) -> tuple[list[ImageFile], int]:
    """List the images in a folder of classes, and count those that are passed over."""
    found: list[ImageFile] = []
    inside = [folder for folder in path.iterdir() if folder.is_dir()]
    folders = sorted(folder for folder in inside if not _is_hidden(folder.name))
    passed_over = sum(len(_images_in(folder)) for folder in inside if _is_hidden(folder.name))
    if not folders:
        raise DataError(f"{path} holds no folders; expected one folder of images per class")
    for folder in folders:
        named = _images_in(folder)
        files = sorted(file for file in named if not any(map(_is_hidden, file.relative_to(folder).parts)))
        passed_over += len(named) - len(files)
        if not files:
            raise DataError(f"{folder}: the class is empty; expected images ({' '.join(IMAGE_ENDINGS[:4])} ...)")
        found += [ImageFile(file, folder.name, str(file)) for file in files]
    return found, passed_over


def _images_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == MACOS_FOLDER


def _check_classes(path: Path, files: list[ImageFile]) -> tuple[str, ...]:
    if not files:
        raise DataError(f"{path} names no image")
    counts = Counter(file.label for file in files)
    if len(counts) < 2:
        raise DataError(f"{path} has one class only, {next(iter(counts))!r}; expected at least two")
    for label, count in sorted(counts.items()):
        if count < 2:
            only = next(file for file in files if file.label == label)
            raise DataError(f"{only.where}: class {label!r} has one image only; expected at least two, one to hold out")
    return tuple(sorted(counts))
