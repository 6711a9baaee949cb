"""What the pages need beside Sphinx: links to the tests that prove a sentence, the options as they are, and pictures.

- ``{proof}`test_get.py::test_x``` (a test of the core) or ``{proof}`pool-redis/test_lease.py::test_x``` links to the test's
  own text. A test that does not exist is a warning, and so an error.
- ``{issue}`asyncpg#467``` links to an issue where it was reported.
- ``{pooloption} name``: one option, with the type and the default that it really has. Each option stands exactly once.
- ``{programs}``: a table of the programs in examples/, each with the first sentence that it says of itself.
- ``{states}``: which state of a connection may follow which.
- ``{picture} file.svg``: a picture inside the page, so that it takes the page's colours, light or dark. With
  ``:optional:`` a file that was not made yet is left out.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
# The documentation has its own environment; the one that is type-checked does without Sphinx.

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from pool_core import PoolConfig
from pool_core._slot import CHANGES
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).parents[2]
logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------- proofs


def test_file(name: str) -> Path:
    """The file of ``test_get.py``, a test of the core, of ``pool-redis/test_lease.py``, or of ``examples/test_x.py``."""
    place, _, file = name.rpartition("/")
    folder = ROOT / "examples" if place == "examples" else ROOT / "packages" / (place or "pool-core")
    return folder / "tests" / file


@functools.cache
def tests_of(path: Path) -> dict[str, tuple[int, str]]:
    """The tests of a file: their lines and docstrings."""
    if not path.is_file():
        return {}
    tree = ast.parse(path.read_text())
    found = {
        node.name: (node.lineno, ast.get_docstring(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    for node in tree.body:  # a machine of Hypothesis: `TestMachine = Machine.TestCase`
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id.startswith("Test")
        ):
            found[node.targets[0].id] = (node.lineno, "A machine of Hypothesis")
    return found


class proof(nodes.inline):  # noqa: N801 - docutils names nodes so
    """A link to a test."""


class Proof(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, test = self.text.partition("::")
        path = test_file(name)
        line, doc = tests_of(path).get(test, (0, ""))
        if not line:
            logger.warning("there is no test %s in %s", test, path.relative_to(ROOT), location=self.get_location())
        cited = getattr(self.env, "pool_proofs", None)
        if cited is None:
            cited = self.env.pool_proofs = {}  # pyright: ignore[reportAttributeAccessIssue]
        cited.setdefault(self.env.docname, set()).add(name)
        return [proof("", file=name, test=test, line=line, doc=" ".join(doc.split()))], []


TRACKERS = {
    "CPython": "python/cpython",
    "HikariCP": "brettwooldridge/HikariCP",
    "SQLAlchemy": "sqlalchemy/sqlalchemy",
    "aiomysql": "aio-libs/aiomysql",
    "aiopg": "aio-libs/aiopg",
    "asyncmy": "long2ice/asyncmy",
    "asyncpg": "MagicStack/asyncpg",
    "bb8": "djc/bb8",
    "npgsql": "npgsql/npgsql",
    "pgx": "jackc/pgx",
    "psycopg": "psycopg/psycopg",
    "pytest-asyncio": "pytest-dev/pytest-asyncio",
    "r2d2": "sfackler/r2d2",
    "redis-py": "redis/redis-py",
    "sqlx": "launchbadge/sqlx",
}


class Issue(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        project, _, number = self.text.partition("#")
        repository = TRACKERS.get(project, project)
        if "/" not in str(repository) or not number.isdigit():
            logger.warning("no such issue tracker or number: %s", self.text, location=self.get_location())
        return [nodes.reference("", f"#{number}", refuri=f"https://github.com/{repository}/issues/{number}")], []


def page_of(file: str) -> str:
    return "proofs/" + file.removesuffix(".py").replace("/", "-")


def visit_proof(translator: Any, node: proof) -> None:
    builder = translator.builder
    uri = builder.get_relative_uri(builder.current_docname, page_of(node["file"]))
    title, text = translator.attval(node["doc"]), translator.encode(node["test"]).replace("_", "_<wbr>")
    translator.body.append(f'<a class="proof" title="{title}" href="{uri}#L-{node["line"]}"><code>{text}</code></a>')
    raise nodes.SkipNode


def skip(translator: Any, node: nodes.Node) -> None:
    raise nodes.SkipNode


def forget(app: Any, env: Any, docname: str) -> None:
    getattr(env, "pool_proofs", {}).pop(docname, None)


def pages_of_proofs(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    cited = getattr(app.env, "pool_proofs", {})
    for file in sorted(set().union(*cited.values())):
        path = test_file(file)
        if path.is_file():
            code = highlight(path.read_text(), PythonLexer(), HtmlFormatter(lineanchors="L"))
            title = str(path.relative_to(ROOT))
            yield page_of(file), {"title": title, "body": f"<h1>{title}</h1>{code}"}, "page.html"


# ---------------------------------------------------------------------------------------------------- options


def described(option: Any) -> tuple[str, str]:
    """The type and the default of an option, as a caller writes them."""
    default = option.default if option.default is not MISSING else option.default_factory()
    if isinstance(default, Enum):
        return str(option.type), f"{type(default).__name__}.{default.name}"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return str(option.type), repr(default)


def parse_option(env: Any, text: str, signature: Any) -> str:
    """Fill in one option's heading."""
    options = {option.name: option for option in fields(PoolConfig)}
    if text not in options:
        logger.warning("PoolConfig has no option %r", text, location=env.docname)
        return text
    kind, default = described(options[text])
    signature += addnodes.desc_name(text, text)
    signature += addnodes.desc_annotation("", f": {kind} = {default}")
    env.pool_options = {*getattr(env, "pool_options", set()), text}
    return text


def all_options(app: Any, env: Any) -> None:
    documented: set[str] = getattr(env, "pool_options", set())
    for missing in sorted({option.name for option in fields(PoolConfig)} - documented):
        logger.warning("the option %s is not documented", missing, location="options")


# ---------------------------------------------------------------------------------------------------- states


class States(SphinxDirective):
    """Which state of a connection may follow which: drawn from the table that the tests check."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        names = list(CHANGES)
        rows = [["from \\ to", *names[1:]]]
        rows += [[before, *("●" if after in CHANGES[before] else "" for after in names[1:])] for before in names[:-1]]
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in rows[0]), cols=len(rows[0]))
        for part, lines in ((nodes.thead(), rows[:1]), (nodes.tbody(), rows[1:])):
            part.extend(nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in line)) for line in lines)
            group += part
        return [nodes.table("", group, classes=["states"])]


# ---------------------------------------------------------------------------------------------------- pictures


STYLE = re.compile(r"<style>(.*?)(?:@media \(prefers-color-scheme: dark\) \{(.*?)\}\s*)?</style>", re.DOTALL)


def confined(match: re.Match[str]) -> str:
    """The colours that a picture brings with it, for this figure only, and dark when the page is."""
    light, dark = match[1], match[2] or ""
    return (
        f"<style>figure.picture {{ {light} }}\n"
        f"body[data-theme=dark] figure.picture {{ {dark} }}\n"
        f"@media (prefers-color-scheme: dark) {{ body:not([data-theme=light]) figure.picture {{ {dark} }} }}</style>"
    )


class Picture(SphinxDirective):
    required_arguments = 1
    has_content = True
    option_spec = {"optional": directives.flag}  # noqa: RUF012 - docutils' form

    def run(self) -> list[nodes.Node]:
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        path = Path(absolute)
        if not path.is_file():
            if "optional" not in self.options:
                logger.warning("there is no picture %s", relative, location=self.get_location())
            return []
        drawing = path.read_text()
        drawing = drawing[drawing.index("<svg") :]
        drawing = STYLE.sub(confined, drawing)
        caption = f"<figcaption>{' '.join(self.content)}</figcaption>" if self.content else ""
        return [nodes.raw("", f'<figure class="picture">{drawing}{caption}</figure>', format="html")]


class Programs(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        items = nodes.bullet_list()
        for path in sorted((ROOT / "examples").glob("[!_]*.py")):
            self.env.note_dependency(str(path))
            sentence = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
            name, text = f"examples/{path.name}", " ".join(sentence.split())
            items += nodes.list_item("", nodes.paragraph("", "", nodes.literal("", name), nodes.Text(f". {text}")))
        return [items]


def setup(app: Any) -> dict[str, bool]:
    app.add_node(proof, html=(visit_proof, None), text=(skip, None))
    app.add_role("proof", Proof())
    app.add_role("issue", Issue())
    app.add_directive("picture", Picture)
    app.add_directive("programs", Programs)
    app.add_directive("states", States)
    app.add_object_type("pooloption", "pooloption", indextemplate="pair: %s; option", parse_node=parse_option)
    app.connect("env-purge-doc", forget)
    app.connect("html-collect-pages", pages_of_proofs)
    app.connect("env-check-consistency", all_options)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
