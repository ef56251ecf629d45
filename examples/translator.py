"""A translation agent: words at once, texts line by line as they are ready.

    python translator.py                       offer and ask in one program
    python translator.py serve                 offer, until Ctrl-C, on as many machines as you like
    python translator.py ask "good morning"    ask whoever does it best

Put a model of your own where the phrase book is: nothing else changes.
"""

import asyncio
import sys
from collections.abc import Iterator

from meshd import Mesh, UsageError, capability

PHRASES = {
    "de": {"good": "guten", "morning": "Morgen", "evening": "Abend", "world": "Welt"},
    "fr": {"good": "bon", "morning": "matin", "evening": "soir", "world": "monde"},
}
TEXT = "good morning\ngood evening\nworld"

mesh = Mesh("translator")


@mesh.agent("translator")
class Translator:
    """Knows a few words."""

    @capability(idempotent=True, tags=("text", "language"), examples=("good morning in German",))
    def translate(self, text: str, to: str = "de") -> str:
        """Translate a text, word by word."""
        if to not in PHRASES:
            raise UsageError(
                f"no translations into {to!r}", hint=f"there are: {', '.join(PHRASES)}"
            )
        return " ".join(PHRASES[to].get(word, word) for word in text.split())

    @capability(idempotent=True, tags=("text", "language"))
    def translate_lines(self, text: str, to: str = "de") -> Iterator[str]:
        """Translate a text; each line is a partial result."""
        for line in text.splitlines():
            yield self.translate(line, to)


async def ask(text: str) -> None:
    """Ask the mesh for both."""
    async with mesh:
        print(await mesh.call("translate", {"text": text, "to": "fr"}, wait=True))
        async for line in mesh.stream("translate_lines", {"text": TEXT}):
            print(line)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            mesh.run()
        case ["ask", text]:
            mesh = Mesh("asker")
            asyncio.run(ask(text))
        case _:
            asyncio.run(ask("good morning"))
