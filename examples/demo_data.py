"""Real files for the demo: a table of orders, and a folder of letters."""

import csv
import random
from pathlib import Path

LETTERS = 120
LETTER_WORDS = 800
_COUNTRIES = ("DE", "FR", "IN", "JP", "KE", "BR")
_SYLLABLES = ("ka", "lo", "mi", "ne", "ru", "sta", "to", "va", "zen", "ber", "lin", "or")


def write_orders(path: Path, rows: int, chance: random.Random) -> None:
    """A CSV of `rows` orders with four numeric columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("order", "country", "quantity", "amount", "weight_kg"))
        for order in range(1, rows + 1):
            quantity = chance.randint(1, 12)
            amount = round(quantity * chance.lognormvariate(3, 0.6), 2)
            weight = round(quantity * chance.uniform(0.1, 2.5), 3)
            table.writerow((order, chance.choice(_COUNTRIES), quantity, amount, weight))


def write_letters(folder: Path, chance: random.Random) -> None:
    """Text files in which some words are far more frequent than others, as in any language."""
    folder.mkdir()
    words = ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4))) for _ in range(2_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    for number in range(1, LETTERS + 1):
        text = chance.choices(words, weights, k=LETTER_WORDS)
        lines = [" ".join(text[start : start + 12]) for start in range(0, len(text), 12)]
        (folder / f"letter-{number:02}.txt").write_text("\n".join(lines) + "\n", "utf-8")
