"""Every Python block of the pages and the READMEs is run as a program of its own; a warning fails it.

What a reader must put in is put in here: a URL in quotes, and the environment variable that stands for it, get the
address of a real server. Which one: by the package of a README, else by the URL in the block. A comment before a block
says what is not plain to see:

    <!-- server: postgres -->   the server for DATABASE_URL, where no URL names it
    <!-- given: pool -->        the block works with `pool`, an open pool on SQLite; `await` may stand at its top
    <!-- recipe -->             the block is a file of tests, run by pytest
    <!-- output -->             the next block is what the one before it prints ("..." is anything)

A block that opens with ```python no-run needs more than one server: only its imports are run here, and the tests of its
package do the rest.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pool_core
import pytest

if TYPE_CHECKING:
    from containers.servers import ServerFactory

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parent
PAGES = [
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
]
SERVER_OF_PACKAGE = {"pool-postgres": "postgres", "pool-redis": "redis", "pool-mysql": "mysql", "pool-mongo": "mongo"}
SERVER_OF_PACKAGE |= {"pool-memcached": "memcached", "pool-rabbitmq": "rabbitmq"}
SERVER_OF_PACKAGE |= {"pool-neo4j": "neo4j", "pool-arangodb": "arangodb"}
SERVER_OF_PACKAGE |= {"pool-psycopg": "postgres"}
SERVER_OF_SCHEME = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "redis": "redis",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "mongodb": "mongo",
    "memcached": "memcached",
    "amqp": "rabbitmq",
}
VARIABLES = {"redis": "REDIS_URL", "mongo": "MONGODB_URL", "memcached": "MEMCACHED_URL", "rabbitmq": "AMQP_URL"}
VARIABLES |= {"neo4j": "NEO4J_URL", "arangodb": "ARANGODB_URL"}
"""What a page may call the URL beside DATABASE_URL."""

BLOCK = re.compile(
    r"(?:^<!-- *(?P<word>\w+)(?:: *(?P<value>[^>]*?))? *-->\n)?^```(?P<lang>\w+)(?P<rest>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
URL = re.compile(r"""(?P<quote>["'])(?P<scheme>[a-z+]+)://[^"'\s?]*(?P<query>\?[^"'\s]*)?(?P=quote)""")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    code: str
    word: str | None  # of the comment before it
    value: str
    output: str | None
    runs: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        if not page.is_file():
            continue
        text = page.read_text()
        found = list(BLOCK.finditer(text))
        for match, after in itertools.pairwise([*found, None]):
            assert match is not None
            if match["lang"] == "python":
                line = text[: match.start("code")].count("\n") + 1
                output = after["code"] if after is not None and after["word"] == "output" else None
                yield Block(
                    page,
                    line,
                    match["code"],
                    match["word"],
                    match["value"] or "",
                    output,
                    "no-run" not in match["rest"],
                )


BLOCKS = list(blocks())


def server_of(block: Block) -> str | None:
    if not block.runs:
        return None
    if block.word == "server":
        return block.value
    if match := URL.search(block.code):
        return SERVER_OF_SCHEME.get(match["scheme"])
    return SERVER_OF_PACKAGE.get(block.page.parent.name)


def program(block: Block, url: str | None) -> str:
    """The block as a file that can be run."""

    def real(match: re.Match[str]) -> str:
        if url is None or match["scheme"] not in SERVER_OF_SCHEME:
            return match[0]
        query = match["query"] or ""
        if "?" in url:
            query = query.replace("?", "&")
        return f"{match['quote']}{url}{query}{match['quote']}"

    code = URL.sub(real, block.code)
    if not block.runs:
        imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
        return "\n".join(map(ast.unparse, imports))
    if block.word != "given":
        return code
    assert block.value == "pool", f"{block}: only a pool can be given"
    return (
        "import asyncio\nfrom pool_core import *\nfrom pool_sqlite import SqliteConnectionManager\n\n"
        "async def main():\n"
        '    async with Pool(SqliteConnectionManager("sqlite://"), max_size=4, min_idle=1) as pool:\n'
        f"{textwrap.indent(code, ' ' * 8)}\n"
        "asyncio.run(main())\n"
    )


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_as_it_stands(block: Block, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What a reader copies works; what the page says it prints is what it prints."""
    kind = server_of(block)
    url = None
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_URL")}
    if kind is not None:
        server: ServerFactory = request.getfixturevalue("server")
        url = server(kind).url
        environment |= {"DATABASE_URL": url, VARIABLES.get(kind, "DATABASE_URL"): url}
    file = tmp_path / ("test_block.py" if block.word == "recipe" else "block.py")
    file.write_text(program(block, url))
    command = [sys.executable, "-W", "error", str(file)]
    if block.word == "recipe":
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, f"{block}:\n{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr, f"{block}:\n{done.stderr}"
    if block.output is not None:
        pattern = ".*?".join(re.escape(part) for part in block.output.strip().split("..."))
        assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), f"{block} prints:\n{done.stdout}"


def test_every_page_with_python_is_among_them() -> None:
    """A page is not left out because its blocks are written in another way."""
    for page in PAGES:
        if page.is_file():
            fences = len(re.findall(r"^ *```+ *python", page.read_text(), re.MULTILINE))
            assert fences == sum(block.page == page for block in BLOCKS), page


def test_each_block_is_python() -> None:
    """A block that cannot be read is named, also where no server can be had to run it."""
    for block in BLOCKS:
        ast.parse(program(block, None), str(block))


def test_each_semantic_names_a_test() -> None:
    """The promises of the pool are sixteen, and each is proven. (That the tests exist is checked when the site is built.)"""
    parts = re.split(r"^## (\d+)\. ", (DOCS / "semantics.md").read_text(), flags=re.MULTILINE)[1:]
    assert parts[::2] == [str(number) for number in range(1, 17)]
    for number, text in zip(parts[::2], parts[1::2], strict=True):
        assert "{proof}`" in text, f"semantic {number} names no test"


def test_each_program_that_a_page_names_is_there() -> None:
    """`examples/x.py` is a promise."""
    for page in PAGES:
        if page.is_file():
            for name in re.findall(r"(?<!proof}`)\bexamples/[\w/]+\.py", page.read_text()):
                assert (ROOT / name).is_file(), f"{page.relative_to(ROOT)} names {name}"


def test_each_public_name_is_in_the_reference() -> None:
    """What can be imported is documented, and what is documented can be imported."""
    described = set(re.findall(r"^\.\. auto\w+:: pool_core\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert described == set(pool_core.__all__)
