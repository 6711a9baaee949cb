"""The list of words that prose does not use: what is found, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "A\nThe pool lends it."),
        ("a.py", "x = 1\n# it is wiped"),
        ("a.py", 'def f():\n    """Say goodbye."""'),
        ("a.py", 'x = 1\ny = f"after the time-out of {x}"'),
    ],
)
def test_a_word_in_prose_is_found_with_its_place(tmp_path: Path, name: str, text: str) -> None:
    """In Markdown, comments, docstrings and messages."""
    path = tmp_path / name
    path.write_text(text)
    (found,) = words.findings([path])
    assert found.startswith(f"{path}:2: ")
    assert "write" in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "The state is `lent`.\n```\nwipe()\n```\nSee {proof}`test_a.py::test_lent`. A borrower waits."),
        ("a.py", "wipe = LENT  # as in `wipe`"),
        ("a.py", 'x = {"verb": 1}\ny = f"{verb}"'),
    ],
)
def test_code_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    """Names are not prose."""
    path = tmp_path / name
    path.write_text(text)
    assert words.findings([path]) == []
