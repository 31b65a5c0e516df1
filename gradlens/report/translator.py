"""Translate sentences that other modules wrote in English: a catalogue of sentences with places for names and numbers.

A file of the catalogue has pairs of lines: a sentence, and after ``=`` the same in the other language. A place such as
``{layer}`` takes any text, which is translated in turn; numbers in it get the decimal mark of the language. Where no
sentence fits, the parts of a text are translated: between semicolons, sentences, brackets, colons and commas. What is
in no sentence of the catalogue, such as the name of a layer, stays as it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from operator import attrgetter

PLACE = re.compile(r"\{(\w+)\}")
ONE = r"[<>~±+-]?(?:\d[\d,]*(?:\.\d+)?|inf)(?:e[+-]?\d+)?"
NUMBER = rf"(?:(?:below|above) )?(?:10\^|1/)?{ONE}(?:\^-?[\d.]+)?(?: ?%| px)?(?: \[{ONE}, {ONE}\])?"
NUMBERS = re.compile(rf"{NUMBER}|\[{ONE}, {ONE}\]")
BRACKETS = re.compile(r"[()]")
UNITS = (
    r"(?:(?:hidden|main) )?layers?|rows?|steps?|seeds?|epochs?|runs?|models?|(?:new )?parameters?|elements|units?|times"
    r"|(?:backward )?pass(?:es)?|entry|entries|values?|examples?"
)
"""What may follow the number in its place: "3 steps"."""
QUOTED = "quoted"
"""The place between quotation marks: it stays as it is."""
WHOLE = ("fix", "clip")
"""Places that hold sentences of their own; all others end with the sentence."""
WORDS = ("are", "have", "them", "verb")
"""Places for one word, which the number of layers or rows decides."""
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
MOST_PLACES = 8
"""A text with more separators of a kind, such as a long list of names, is parted at all of them at once."""
FOLDERS = {"id": "indonesian"}


@dataclass(frozen=True)
class Said:
    """A translation.

    Args:
        text: The text in the other language.
        left: The number of characters that no sentence of the catalogue translates, in parts of several words.
    """

    text: str
    left: int = 0


class Translator:
    """A catalogue that translates texts; call it with a text.

    Where several sentences fit, or a text can be translated as a whole and in parts, that is taken which leaves the
    least of the text as it is.

    Args:
        pairs: Sentences and their translations.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._by_word: dict[str, list[tuple[re.Pattern[str], str, bool]]] = {}
        self._known: dict[str, Said] = {}
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
        return self._say(text).text

    def _say(self, text: str) -> Said:
        if text not in self._known:
            whole = self._whole(text)
            if whole is None or whole.left:
                parts = self._in_parts(text)
                whole = parts if whole is None or parts.left < whole.left else whole
            self._known[text] = whole
        return self._known[text]

    def _whole(self, text: str) -> Said | None:
        """Return the translation of a text that is a number or in the catalogue as a whole."""
        if NUMBERS.fullmatch(text):
            return Said(localise(text))
        lower = text[:1].lower() + text[1:]
        found = [
            said
            for one in dict.fromkeys((text, lower))
            for word in (one.split(" ")[0], "")
            if word or one is text
            if (said := self._sentence(one, word, capital=one is not text)) is not None
        ]
        if text.endswith(".") and not any(one.left == 0 for one in found) and (said := self._whole(text[:-1])):
            found.append(Said(f"{said.text}.", said.left))
        return min(found, key=attrgetter("left"), default=None)

    def _sentence(self, text: str, word: str, *, capital: bool = False) -> Said | None:
        """Translate a text by the sentences that begin with a word, or with a place.

        Args:
            text: The text.
            word: The word, or "".
            capital: Whether the text began with a capital letter, which the translation then has, too, unless the
                sentence of the catalogue has one, as a name does.

        Returns:
            The translation that leaves the least as it is; None where no sentence fits.
        """
        best: Said | None = None
        for pattern, other, is_written_so in self._by_word.get(word, ()):
            if (match := pattern.fullmatch(text)) and all(map(_is_whole, match.groups())):
                said = self._filled(match, other)
                if capital and not is_written_so:
                    said = replace(said, text=said.text[:1].upper() + said.text[1:])
                best = said if best is None or said.left < best.left else best
                if not best.left:
                    break
        return best

    def _filled(self, match: re.Match[str], other: str) -> Said:
        """Return a translation with the texts for its places, translated unless they are quoted."""
        named = match.groupdict()
        found = {name: Said(text) if name == QUOTED else self._say(text) for name, text in named.items()}
        return Said(PLACE.sub(lambda place: found[place[1]].text, other), sum(one.left for one in found.values()))

    def _in_parts(self, text: str) -> Said:
        """Translate the parts of a text between separators and brackets."""
        found = Said(text, len(text) if " " in text else 0)
        for said in self._parted(text):
            if said.left < found.left or (said.left == found.left and found.text == text):
                found = said
            if not found.left:
                break
        return found

    def _parted(self, text: str) -> Iterator[Said]:
        """Yield the ways to translate a text in two parts; in all its parts where there are many."""
        for separator, other in SENTENCES:
            yield from self._between(text, separator, other)
        if said := self._before_brackets(text):
            yield said
        for separator, other in PHRASES:
            yield from self._between(text, separator, other)

    def _between(self, text: str, separator: re.Pattern[str], other: str) -> Iterator[Said]:
        places = _places(text, separator)
        if len(places) > MOST_PLACES:
            ends = [(0, 0), *places, (len(text), len(text))]
            said = [self._say(text[one[1] : two[0]]) for one, two in itertools.pairwise(ends)]
            yield Said(other.join(one.text for one in said), sum(one.left for one in said))
            return
        for start, end in places:
            first, second = self._say(text[:start]), self._say(text[end:])
            yield Said(f"{first.text}{other}{second.text}", first.left + second.left)

    def _before_brackets(self, text: str) -> Said | None:
        """Translate what is before the brackets at the end of a text, and in them."""
        body, end = (text[:-1], text[-1]) if text[-1:] in tuple(".:,") else (text, "")
        if not body.endswith(")"):
            return None
        depth = 0
        for at in range(len(body) - 1, 0, -1):
            depth += {")": 1, "(": -1}.get(body[at], 0)
            if depth == 0:
                if body[at - 1] != " ":
                    return None
                before, within = self._say(body[: at - 1]), self._say(body[at + 1 : -1])
                return Said(f"{before.text} ({within.text}){end}", before.left + within.left)
        return None


def _place(name: str, *, is_first: bool) -> str:
    """Return the pattern of a place; one that begins a sentence does not take the sentences before a semicolon."""
    if re.fullmatch("n[0-9]*", name):
        return f"(?P<{name}>{NUMBER}(?: (?:{UNITS}))?)"
    if name == QUOTED:
        return f"(?P<{name}>[^']+)"
    if name in WORDS:
        return rf"(?P<{name}>\w+)"
    if name in WHOLE:
        return f"(?P<{name}>.+?)"
    end = f"{END}|; " if is_first else END
    return f"(?P<{name}>(?:(?!{end}).)+?)"


def _is_whole(text: str) -> bool:
    """Return whether the text in a place has no bracket whose other half lies outside of it."""
    depth = 0
    for mark in BRACKETS.findall(text):
        depth += 1 if mark == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def _places(text: str, separator: re.Pattern[str]) -> list[tuple[int, int]]:
    """Return where a separator begins and ends outside of brackets."""
    found, start = [], 0
    for place in separator.finditer(text):
        before = text[start : place.start()]
        if before.count("(") == before.count(")") and before.count("[") == before.count("]"):
            found.append((place.start(), place.end()))
            start = place.end()
    return found


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
