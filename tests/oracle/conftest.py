"""What several peers are asked."""

import random

import pytest


@pytest.fixture(scope="session")
def hostile_strings():
    """A function that gives ``n`` strings on which tokenisers disagree."""

    def hostile_strings(n):
        rng = random.Random(5)
        alphabet = "abc XYZ 0123 \t\n.,;(){}<>/\\'\"äßéñ汉字😀👩‍👩‍👧\u00a0\u200b\x00\x7f▁_"
        fixed = [
            "", " ", "  ", "hello", " hello", "hello ", "a  b", "\n", "\t\tx", "<s>", "</s>",
            "<unk>",
            "a<s>b", "<0x0A>", "▁", "▁▁a", "𝔘𝔫𝔦", "e\u0301", "1234567890", "x = f(1) # é",
        ]  # fmt: skip
        pieces = ["the ", "cat ", "12", " + ", "<s>", "</s>", "def ", "  ", "é", "2024-01-05", "😀"]
        for _ in range(n - len(fixed)):
            if rng.random() < 0.5:
                fixed.append("".join(rng.choices(alphabet, k=rng.randint(1, 40))))
            else:
                fixed.append("".join(rng.choices(pieces, k=rng.randint(1, 15))))
        return fixed

    return hostile_strings
