"""The capability that the benches call: it gives back what it gets, in the daemon's own loop."""

from meshd import capability


@capability
async def echo(text: str) -> str:
    """Give the text back."""
    return text
