"""Build the site of docs/ into build/docs/site: collect the pages, fill in what code knows best, run Zensical.

    python docs/site/build.py            # --pages: only write the pages, without Zensical

A line ``<!-- generated: NAME -->`` of a page is replaced by what ``GENERATORS[NAME]`` returns, so help texts,
docstrings and lists of tests are never stale. Pages and files outside docs/ that a page links to are collected, too.
Warnings are errors.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the tests, whose lists are shown

from generated import GENERATORS  # noqa: E402

HERE = ROOT / "docs" / "site"
BUILD = ROOT / "build" / "docs"
PAGES = BUILD / "pages"
LINK = re.compile(r"(\]\()([^)#\s]*)(#[^)\s]*)?(\))")
MARK = re.compile(r"^<!-- generated: (\w+) -->$", flags=re.M)
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", flags=re.M | re.S)
CODE_BLOCK = re.compile(r"^```.*?^```$", flags=re.M | re.S)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^\s$](?:[^$]*?[^\s$])?)\$", flags=re.S)
LANGUAGES = {".py": "python", ".toml": "toml", ".txt": "text", ".css": "css"}
"""Files that become a page which shows them."""
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
"""The head of a page that the search leaves out."""


class Site:
    """The pages that are collected: each file of the repository has one place in the site."""

    def __init__(self) -> None:
        self.places: dict[Path, str] = {}
        self.waiting: list[Path] = []

    def place(self, file: Path) -> str:
        """Return where a file of the repository is in the site, and collect it if it is new.

        Args:
            file: The file.
        """
        if (file / "README.md").is_file():
            file = file / "README.md"
        if not file.exists():
            raise SystemExit(f"{file.relative_to(ROOT)}: a page links to it, and it is not there")
        if file not in self.places:
            name = file.relative_to(ROOT).as_posix()
            inside = name.startswith("docs/")
            name = name.removeprefix("docs/") if inside else f"project/{name}"
            if file.is_dir():
                name += "/index.md"
            elif file.suffix == ".md":
                name = re.sub(r"README\.md$", "index.md", name)
            elif file.suffix in LANGUAGES:
                name += ".md"
            self.places[file] = name
            self.waiting.append(file)
        return self.places[file]

    def write(self) -> None:
        """Write every page that was placed, and those that it links to."""
        while self.waiting:
            file = self.waiting.pop()
            target = PAGES / self.places[file]
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                target.write_text(self.folder(file), encoding="utf-8")
            elif file.suffix == ".md":
                target.write_text(self.page(file), encoding="utf-8")
            elif file.suffix in LANGUAGES:
                target.write_text(show_file(file), encoding="utf-8")
            else:
                shutil.copyfile(file, target)

    def folder(self, folder: Path) -> str:
        """Return a page that lists the files of a folder."""
        name, here = folder.relative_to(ROOT).as_posix(), Path(self.places[folder]).parent
        files = [file for file in sorted(folder.iterdir()) if file.suffix in LANGUAGES]
        links = [f"- [{file.name}]({os.path.relpath(self.place(file), here)})" for file in files]
        return f"{HIDDEN}# {name}\n\n" + "\n".join(links) + "\n"

    def page(self, file: Path) -> str:
        """Return a page with its generated parts, formulas and links as the site has them."""
        text = MARK.sub(lambda match: GENERATORS[match.group(1)](), file.read_text(encoding="utf-8"))
        here = Path(self.places[file]).parent

        def link(match: re.Match[str]) -> str:
            start, target, anchor, end = match.groups()
            if not target or target.startswith(("http", "mailto:")):
                return match.group()
            place = self.place((file.parent / target).resolve())
            return f"{start}{Path(os.path.relpath(place, here)).as_posix()}{anchor or ''}{end}"

        parts = CODE.split(text)  # code is every second part
        parts[::2] = [FORMULA.sub(formula, LINK.sub(link, part)) for part in parts[::2]]
        hidden = self.places[file].startswith("project/experiments/")
        return HIDDEN * hidden + "".join(parts)


def show_file(file: Path) -> str:
    """Return a page that shows a file."""
    name, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8").rstrip()
    return f"{HIDDEN}# {name}\n\n````{LANGUAGES[file.suffix]}\n{text}\n````\n"


def formula(match: re.Match[str]) -> str:
    """Return a formula as MathML, which needs no script."""
    from latex2mathml.converter import convert

    block = match.group(1)
    found = convert(" ".join((block or match.group(2)).split()), display="block" if block else "inline")
    return found if block else f"<span>{found}</span>"  # alone at the start of a line it would be a block


def list_nav(nav: list[dict[str, Any]], heading: str = "") -> list[tuple[str, str, str]]:
    """Return the pages of the navigation: heading, title and file."""
    found = []
    for entry in nav:
        for title, value in entry.items():
            found += [(heading, title, value)] if isinstance(value, str) else list_nav(value, title)
    return found


def read_nav() -> list[tuple[str, str, str]]:
    """Return the pages of the site: heading, title, and file below the site's root."""
    return list_nav(tomllib.loads((HERE / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])


def source(page: str) -> Path:
    """Return the file of the repository that a page of the navigation is made from."""
    file = ROOT / (page.removeprefix("project/") if page.startswith("project/") else f"docs/{page}")
    return file.with_name("README.md") if file.name == "index.md" else file


def first_sentence(file: Path) -> str:
    """Return the first sentence of a page's text."""
    for part in CODE_BLOCK.sub("", file.read_text(encoding="utf-8")).split("\n\n")[1:]:
        text = " ".join(part.split()).removeprefix("- ")
        if text.startswith("`pip install"):
            return "the callback, an example that runs, and what it records"
        if text[:1].isalpha() or text[:1] in "`[*":
            text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text).replace("**", "")
            return re.split(r"(?<=[.:])\s", text)[0].rstrip(":")
    return ""


def llms_text() -> str:
    """Return llms.txt: what the project is, and a line for each page, for programs that read the site."""
    lines = [
        "# gradlens",
        "",
        "> See where your model's gradient goes, and why it does not learn. A recorder of per-layer gradients for",
        "> PyTorch, with figures, findings and commands. `gradlens --skill` prints how an agent uses it.",
    ]
    last = None
    for heading, title, page in read_nav():
        if heading != last:
            lines += ["", f"## {heading or 'Start'}" if heading or last is None else "## More", ""]
            last = heading
        said = first_sentence(source(page)) if source(page).is_file() else ""
        lines.append(f"- [{title}]({page.removesuffix('.md')}.html)" + (f": {said}" if said else ""))
    return "\n".join(lines) + "\n"


def write_pages() -> None:
    """Write everything that Zensical reads."""
    shutil.rmtree(BUILD, ignore_errors=True)
    PAGES.mkdir(parents=True)
    config = (HERE / "zensical.toml").read_text(encoding="utf-8")
    site = Site()
    for _, _, page in read_nav():
        if site.place(source(page)) != page:
            raise SystemExit(f"{page}: the navigation names it, its place is {site.place(source(page))}")
    for file in sorted((ROOT / "docs").rglob("*.md")):
        site.place(file)
    site.write()
    shutil.copyfile(HERE / "site.css", PAGES / "site.css")
    (PAGES / "llms.txt").write_text(llms_text(), encoding="utf-8")
    (BUILD / "zensical.toml").write_text(config, encoding="utf-8")


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", action="store_true", help="only write the pages, into build/docs/pages")
    arguments = parser.parse_args()
    write_pages()
    if not arguments.pages:
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(BUILD / "zensical.toml")]
        subprocess.run(command, check=True, cwd=BUILD)
        print(f"built {(BUILD / 'site').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
