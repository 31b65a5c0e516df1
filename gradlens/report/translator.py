"""Translate sentences that other modules wrote in English: a catalogue of sentences with places for names and numbers.

A file of the catalogue has pairs of lines: a sentence, and after ``=`` the same in the other language. A place such as
``{layer}`` takes any text, which is translated in turn; numbers in it get the decimal mark of the language. Where no
sentence fits, the parts of a text are translated: between semicolons, sentences, brackets, colons and commas. What is
in no sentence of the catalogue, such as the name of a layer, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, partial
from importlib.resources import files

PLACE = re.compile(r"\{(\w+)\}")
ONE = r"[<>~±+-]?(?:\d[\d,]*(?:\.\d+)?|inf)(?:e[+-]?\d+)?"
NUMBER = rf"(?:(?:below|above) )?(?:10\^|1/)?{ONE}(?:\^-?[\d.]+)?(?: ?%| px)?(?: \[{ONE}, {ONE}\])?"
NUMBERS = re.compile(rf"{NUMBER}|\[{ONE}, {ONE}\]")
QUOTED = "quoted"
"""The place between quotation marks: it stays as it is."""
WHOLE = ("fix", "clip")
"""Places that hold sentences of their own; all others end with the sentence."""
END = r"\. [A-Z]|(?<=[\w\])]{2})\. [a-z]"
"""The end of a sentence, and the beginning of the next, which may be the name of a model; "s. d." is no end."""
SENTENCES = (
    (re.compile("; "), "; "),
    (re.compile(r"(?<=\.) (?=[A-Z])|(?<=[\w\])]{2}\.) (?=[a-z])"), " "),
    (re.compile(r"(?<=\)), and "), ", dan "),
)
PHRASES = (
    (re.compile(": "), ": "), (re.compile(", "), ", "), (re.compile(" and "), " dan "), (re.compile(" / "), " / "),
)  # fmt: skip
FOLDERS = {"id": "indonesian"}


class Translator:
    """A catalogue that translates texts; call it with a text.

    Args:
        pairs: Sentences and their translations.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._by_word: dict[str, list[tuple[re.Pattern[str], str, bool]]] = {}
        self._known: dict[str, str] = {}
        for sentence, translation in sorted(pairs, key=lambda pair: -len(PLACE.sub("", pair[0]))):
            english, other = sentence[:1].lower() + sentence[1:].removesuffix("."), translation.removesuffix(".")
            parts = PLACE.split(english)
            pattern = "".join(
                re.escape(part) if i % 2 == 0 else _place(part, is_first=not parts[0] and i == 1)
                for i, part in enumerate(parts)
            )
            word = parts[0].split(" ")[0] if " " in parts[0] or len(parts) == 1 else ""
            self._by_word.setdefault(word, []).append((re.compile(pattern, re.DOTALL), other, sentence[:1].isupper()))

    def __call__(self, text: str) -> str:
        """Return a text in the language of the catalogue."""
        if text not in self._known:
            self._known[text] = self._whole(text) or self._in_parts(text)
        return self._known[text]

    def _whole(self, text: str) -> str:
        """Return the translation of a text that is a number or in the catalogue as a whole; else ""."""
        if NUMBERS.fullmatch(text):
            return localise(text)
        lower = text[:1].lower() + text[1:]
        for said in dict.fromkeys((text, lower)):
            if found := self._sentence(said, said.split(" ")[0], capital=said is not text):
                return found
        if found := self._sentence(text, ""):
            return found
        return f"{said}." if text.endswith(".") and (said := self._whole(text[:-1])) else ""

    def _sentence(self, text: str, word: str, *, capital: bool = False) -> str:
        """Translate a text by the sentences that begin with a word, or with a place.

        Args:
            text: The text.
            word: The word, or "".
            capital: Whether the text began with a capital letter, which the translation then has, too, unless the
                sentence of the catalogue has one, as a name does.

        Returns:
            The translation, or "".
        """
        for pattern, other, is_written_so in self._by_word.get(word, ()):
            if match := pattern.fullmatch(text):
                said = PLACE.sub(partial(self._fill, match), other)
                return said[:1].upper() + said[1:] if capital and not is_written_so else said
        return ""

    def _fill(self, match: re.Match[str], place: re.Match[str]) -> str:
        """Return the text for a place of a sentence, translated unless it is quoted."""
        found = match[place[1]]
        return found if place[1] == QUOTED else self(found)

    def _in_parts(self, text: str) -> str:
        """Translate the parts of a text between separators and brackets."""
        return self._between(text, SENTENCES) or self._before_brackets(text) or self._between(text, PHRASES) or text

    def _between(self, text: str, separators: tuple[tuple[re.Pattern[str], str], ...]) -> str:
        for separator, other in separators:
            parts = _split(text, separator)
            if len(parts) > 1:
                return other.join(map(self, parts))
        return ""

    def _before_brackets(self, text: str) -> str:
        """Translate what is before the brackets at the end of a text, and in them."""
        body, end = (text[:-1], text[-1]) if text[-1:] in tuple(".:,") else (text, "")
        if not body.endswith(")"):
            return ""
        depth = 0
        for at in range(len(body) - 1, 0, -1):
            depth += {")": 1, "(": -1}.get(body[at], 0)
            if depth == 0:
                return f"{self(body[: at - 1])} ({self(body[at + 1 : -1])}){end}" if body[at - 1] == " " else ""
        return ""


def _place(name: str, *, is_first: bool) -> str:
    """Return the pattern of a place; one that begins a sentence does not take the sentences before a semicolon."""
    if re.fullmatch("n[0-9]*", name):
        return f"(?P<{name}>{NUMBER})"
    if name == QUOTED:
        return f"(?P<{name}>[^']+)"
    if name in WHOLE:
        return f"(?P<{name}>.+?)"
    end = f"{END}|; " if is_first else END
    return f"(?P<{name}>(?:(?!{end}).)+?)"


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at a separator outside of brackets."""
    parts, start = [], 0
    for found in separator.finditer(text):
        before = text[: found.start()]
        if before.count("(") == before.count(")") and before.count("[") == before.count("]"):
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def localise(text: str) -> str:
    """Write the numbers of a text with a decimal comma, and with dots between thousands."""
    text = re.sub(r"(?<=\d), (?=[+-]?\d)", "; ", text).replace("below ", "di bawah ").replace("above ", "di atas ")
    return re.sub(r"(?<=\d)[.,](?=\d)", lambda mark: {".": ",", ",": "."}[mark[0]], text)


@cache
def translator(language: str) -> Translator | None:
    """Return the translator into a language; None for English."""
    if language not in FOLDERS:
        return None
    pairs: list[tuple[str, str]] = []
    for file in sorted(files(__package__).joinpath(FOLDERS[language]).iterdir(), key=lambda one: one.name):
        if file.name.endswith(".txt"):
            pairs += read_pairs(file.read_text(encoding="utf-8"))
    return Translator(pairs)


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Return the pairs of a file of the catalogue."""
    pairs, english = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("= "):
            pairs.append((english, line[2:]))
        elif not line.startswith("# "):
            english = line
    return pairs


def translate(text: str, language: str) -> str:
    """Return a text in a language.

    Args:
        text: An English text of gradlens.
        language: "en" or "id".
    """
    found = translator(language)
    return text if found is None else found(text)
