"""Words that a reader would have to guess at: `python tools/words.py`. What to write instead stands beside each.

Prose only: in Markdown without code, in Python comments and strings. The glossary in docs/glossary.md has the words to use.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS = {
    r"time-outs?": "timeout",
    r"goodbyes?": "close",
    r"fruits?": "name what goes where: the connection",
    r"lend(?:s|ing)?|lent": "acquire, hand out, in use",
    r"borrow(?:s|ed|ing)?": "acquire, get",
    r"wip(?:e|es|ed|ing)": "reset",
    r"verbs?": "method",
    r"kits?": "conformance suite",
    r"loans?": "lease",
    r"can not": "cannot",
    r"by (?:the|their|its) [a-z]+(?:'s?)? words?": "say who says it",
}
BAD = {re.compile(rf"(?<![\w`/.-])(?:{word})(?![\w`(])", re.IGNORECASE): better for word, better in WORDS.items()}
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`|\{\w+\}`[^`]*`", re.DOTALL | re.MULTILINE)
FIELD = re.compile(r"\{[^{}\n]*\}")  # of an f-string
NAME = re.compile(r"""["'][a-z_]+["']""")
QUOTED = ("The time between borrowing a connection",)  # OpenTelemetry's words for a metric
SKIPPED = {"tools/words.py", "tools/test_words.py"}


def blank(match: re.Match[str]) -> str:
    """Keep the lines of what is skipped, for the line numbers."""
    return re.sub(r"[^\n]", " ", match[0])


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that people read as sentences, with their numbers."""
    text = path.read_text()
    if path.suffix == ".md":
        yield from enumerate(CODE.sub(blank, text).splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        strings = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        if token.type in strings:
            text = token.string if token.type == tokenize.COMMENT else FIELD.sub(blank, token.string)
            if NAME.fullmatch(text):
                continue
            for offset, line in enumerate(CODE.sub(blank, text).splitlines()):
                yield token.start[0] + offset, line


def findings(paths: list[Path]) -> list[str]:
    """Return each bad word with its place and what to write instead."""
    return [
        f"{path}:{number}: {match[0]!r}: write {better}"
        for path in paths
        for number, line in prose(path)
        for bad, better in BAD.items()
        for match in bad.finditer(line)
        if not match[0].isupper() and not any(quotation in line for quotation in QUOTED)  # LENT is a name
    ]


def main() -> int:
    """Check all files that git knows."""
    command = ["git", "ls-files", "*.md", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    paths = [ROOT / name for name in listed.stdout.splitlines() if name not in SKIPPED]
    found = findings([path for path in paths if path.is_file()])
    sys.stdout.writelines(f"{line.removeprefix(f'{ROOT}/')}\n" for line in found)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
