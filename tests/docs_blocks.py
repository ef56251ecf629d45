"""Reads Markdown as the documentation's tests need it: fenced blocks, commands, links, headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import repository

_FENCE = re.compile(r"^(`{3,}|~{3,})\s*(\S*)\s*(.*?)\s*$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_SCRIPT = re.compile(r"(?<![\w/.])script/[\w.-]+")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")", "|&"}
_PREFIXES = {"sudo", "time", "exec", "nohup", "watch", "$", "!"}


@dataclass(frozen=True)
class Block:
    """A fenced block: ```LANGUAGE WORDS, then `text`. `line` is that of the opening fence."""

    document: Path
    line: int
    language: str
    words: frozenset[str]
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Document:
    """One Markdown file, by its path from the root."""

    path: Path
    text: str

    def blocks(self) -> Iterator[Block]:
        """Every fenced block, in order. An unclosed one ends with the file."""
        fence, start, language, words, body = "", 0, "", "", list[str]()
        for number, line in enumerate([*self.text.splitlines(), ""], start=1):
            found = _FENCE.match(line)
            if not fence and found:
                fence, language, words = found.groups()
                start, body = number, []
            elif fence and line.strip().startswith(fence) and not line.strip(" `~"):
                yield Block(
                    self.path, start, language, frozenset(words.split()), "\n".join(body) + "\n"
                )
                fence = ""
            elif fence:
                body.append(line)
        assert not fence, f"{self.path}:{start}: the block is never closed"

    def prose(self) -> str:
        """The text without its fenced blocks and code spans."""
        kept, fence = [], ""
        for line in self.text.splitlines():
            found = _FENCE.match(line)
            if found and not fence:
                fence = found[1]
            elif fence:
                fence = "" if line.strip() == fence else fence
            else:
                kept.append(re.sub(r"`[^`]*`", "", line))
        return "\n".join(kept)

    def links(self) -> Iterator[str]:
        """Targets of links and images that lie in this repository."""
        prose = self.prose()
        for target in [*_LINK.findall(prose), *_IMAGE.findall(prose)]:
            if not re.match(r"[a-z][a-z0-9+.-]*:", target):
                yield target

    def scripts(self) -> set[str]:
        """Every `script/...` that is named anywhere."""
        return {name.rstrip(".") for name in _SCRIPT.findall(self.text)}

    def anchors(self) -> set[str]:
        """What may follow a # in a link here: headings as the usual forges spell them."""
        headings = (_HEADING.match(line) for line in self.text.splitlines())
        return {_slug(found[1]) for found in headings if found}


def documents() -> list[Document]:
    """README, the other pages in the root, and all of docs."""
    found = [*repository.ROOT.glob("*.md"), *(repository.ROOT / "docs").rglob("*.md")]
    return [
        Document(path.relative_to(repository.ROOT), path.read_text("utf-8"))
        for path in sorted(found)
    ]


def commands(block: Block) -> list[list[str]]:
    """The simple commands of a shell block, each as words; comments and output left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [command for line in lines for command in _split(line)]


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    current: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word in _SEPARATORS:
            if current:
                yield current
            current, skip = [], False
        elif set(word) <= {"<", ">", "&"}:
            skip = True  # the next word is a file
        elif skip:
            skip = False
        elif current or not (word in _PREFIXES or re.match(r"[A-Za-z_]\w*=", word)):
            current.append(word)


def _slug(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
