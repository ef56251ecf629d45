"""Two agents that work together: an editor who asks a reader, wherever in the mesh that one is.

    python pipeline.py "Some text to report on. It may be long."

Run it on two machines of a mesh and either editor may ask either reader. Neither knows an address.
"""

import asyncio
import sys
from collections import Counter

from meshd import Mesh, capability

TEXT = "The mesh has no centre. Every node knows the mesh, and every node may do the work."

mesh = Mesh("pipeline")


@mesh.agent("reader")
class Reader:
    """Looks at texts."""

    @capability(idempotent=True, tags=("text",))
    def frequent_words(self, text: str, top: int = 3) -> dict[str, int]:
        """Count the most frequent words of more than three letters."""
        words = (word.strip(".,;:!?\"'").lower() for word in text.split())
        return dict(Counter(word for word in words if len(word) > 3).most_common(top))


@mesh.agent("editor", idempotent=True, tags=("text", "report"))
async def report(text: str) -> str:
    """Write one line about a text, with a reader's help."""
    # The time that is left for the report bounds this call, too; the mesh carries it along.
    words = await mesh.call("frequent_words", {"text": text})
    themes = ", ".join(f"{word} ({count})" for word, count in words.items())
    return f"{len(text.split())} words, mostly about: {themes}"


async def main() -> None:
    """Have a report written, and say who wrote it."""
    text = " ".join(sys.argv[1:]) or TEXT
    async with mesh:
        answer = await mesh.delegate("report", {"text": text})
        print(answer["peer_result"]["result"])
        print(f"written by {answer['peer_result']['agent']} on {answer['peer_result']['node']}")


if __name__ == "__main__":
    asyncio.run(main())
