"""Where a report goes: written whole, and onto nothing that gradlens did not write unless its name was asked for."""

from __future__ import annotations

from pathlib import Path

from gradlens.atomic import whole_file, write_errors, write_text
from gradlens.errors import ConfigError, RunExistsError
from gradlens.report.content import Facts
from gradlens.report.translations import words_of

ENDINGS = (".html", ".md", ".pdf")
DEFAULT = Path("report.html")


def check_report(path: Path, language: str) -> None:
    """Refuse a name whose ending is not known, and a language that its form does not have.

    Raises:
        ConfigError: It is so.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(
            f"no report can be written to {path}: expected a name that ends in {', '.join(ENDINGS)}, got {ending!r}",
            tip="gradlens report -o report.html",
        )
    words_of(language)
    if language != "en" and ending != ".md":
        raise ConfigError(
            f"--lang {language} is of Markdown reports: expected a name that ends in .md, got {path}",
            tip=f"gradlens report --lang {language} -o {path.with_suffix('.md').name}",
        )


def write_report(facts: Facts, path: Path, *, language: str = "en", asked: bool = True) -> list[Path]:
    """Write a report; the ending of its name gives the form.

    Args:
        facts: What it says.
        path: .html, .md or .pdf.
        language: "en"; of Markdown also "id".
        asked: The user named this file, so it may be replaced; otherwise only a report of gradlens is.

    Returns:
        The files that were written, the report first, then the pictures beside it.

    Raises:
        ConfigError: The ending or the language is not known.
        RunExistsError: A file that gradlens did not write is in the way.
        RunFileError: It cannot be written.
    """
    check_report(path, language)
    if any(path.exists() and path.samefile(run.path) for run in facts.runs if run.path.exists()):
        raise ConfigError(f"{path} is a run itself; name another file")
    if not asked and path.exists() and not _is_ours(path):
        raise RunExistsError(
            f"{path} is there and was not written by gradlens report", tip="-o FILE names another place"
        )
    with write_errors(f"{path} cannot be written"):
        return _write(facts, path, language)


def _write(facts: Facts, path: Path, language: str) -> list[Path]:
    ending = path.suffix.lower()
    if ending == ".md":
        from gradlens.report.markdown import draw_pictures, make_markdown

        pictures = draw_pictures(facts, path)
        write_text(path, make_markdown(facts, pictures, language))
        return [path, *pictures.values()]
    if ending == ".pdf":
        from gradlens.report.pdf import write_paper

        with whole_file(path) as temporary:
            write_paper(facts, temporary)
        return [path]
    from gradlens.report.html import make_page

    write_text(path, make_page(facts))
    return [path]


def _is_ours(path: Path) -> bool:
    from gradlens.report.html import GENERATOR

    with open(path, encoding="utf-8", errors="replace") as file:
        return f'name="generator" content="{GENERATOR}' in file.read(4000)
