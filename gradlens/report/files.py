"""Write a report file completely or not at all, and replace only files that gradlens wrote or that the user named."""

from __future__ import annotations

from pathlib import Path

from gradlens.atomic import replaceable, whole_file, write_errors, write_text
from gradlens.errors import ConfigError, RunExistsError
from gradlens.export.optional_libraries import check_library
from gradlens.report.content import Facts
from gradlens.report.translations import words_of

ENDINGS = (".html", ".md", ".pdf", ".docx")
DEFAULT = Path("report.html")


def check_report(path: Path, language: str) -> None:
    """Check the ending of a report's name and its language.

    Args:
        path: The report's file.
        language: "en" or "id".

    Raises:
        ConfigError: The ending or the language is unknown.
        MissingLibraryError: The library that writes this format is not installed.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(
            f"no report can be written to {path}: expected a name that ends in {', '.join(ENDINGS)}, got {ending!r}",
            tip="gradlens report -o report.html",
        )
    words_of(language)
    check_library(ending.removeprefix("."))


def write_report(facts: Facts, path: Path, *, language: str = "en", asked: bool = True) -> list[Path]:
    """Write a report in the format that the ending of its name selects.

    Args:
        facts: What the report says.
        path: A name that ends in .html, .md, .pdf or .docx.
        language: "en" or "id".
        asked: Whether the user named this file. If not, only a report of gradlens is replaced.

    Returns:
        The files that were written: the report first, then its figures.

    Raises:
        ConfigError: The ending or the language is unknown, or the path is a run.
        MissingLibraryError: The library that writes this format is not installed.
        RunExistsError: A file that gradlens did not write has this name.
        RunFileError: The file cannot be written.
    """
    check_report(path, language)
    if any(path.exists() and path.samefile(run.path) for run in facts.runs if run.path.exists()):
        raise ConfigError(f"{path} is a run itself; name another file")
    if not asked and path.exists() and not _is_ours(path):
        raise RunExistsError(f"{path} exists and was not written by gradlens report", tip="-o FILE names another file")
    with write_errors(f"{path} cannot be written"):
        replaceable(path)  # before its figures are written
        return _write(facts, path, language)


def _write(facts: Facts, path: Path, language: str) -> list[Path]:
    ending = path.suffix.lower()
    if ending == ".md":
        from gradlens.report.markdown import make_markdown, save_figures

        written = save_figures(facts, path, language)
        write_text(path, make_markdown(facts, written, language))
        return [path, *written.values()]
    if ending == ".pdf":
        from gradlens.report.pdf import write_paper

        with whole_file(path) as temporary:
            write_paper(facts, temporary, language)
        return [path]
    if ending == ".docx":
        from gradlens.report.docx import write_document

        with whole_file(path) as temporary:
            write_document(facts, temporary, language)
        return [path]
    from gradlens.report.html import make_page

    write_text(path, make_page(facts, language))
    return [path]


def _is_ours(path: Path) -> bool:
    from gradlens.report.html import GENERATOR

    with open(path, encoding="utf-8", errors="replace") as file:
        return f'name="generator" content="{GENERATOR}' in file.read(4000)
