"""``{messages} pool-core``: every message that a package can raise or warn with, taken from its source.

So none can be missing, and the search of the site finds each. What is filled in at run time is shown as ``…``.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
# The documentation has its own environment; the one that is type-checked does without Sphinx.

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
BUILT_IN = {"TypeError", "ValueError", "LookupError", "RuntimeError", "AttributeError", "NotImplementedError"}
OURS = ("Error", "Timeout", "Deadlock", "Overloaded", "Closed", "Full", "Connection", "Pool", "Loop", "Warning")


def is_error(name: str) -> bool:
    """Tell whether calling this name makes an error or a warning with a message."""
    return name in BUILT_IN or (name[:1].isupper() and name.endswith(OURS) and name not in {"Pool", "PooledConnection"})


def templates(node: ast.expr | None, assigned: dict[str, list[ast.expr]]) -> list[str]:
    """Return the texts that a message can have, with ``…`` for what is filled in; none: it is not written here."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join((templates(part, {}) or ["…"])[0] for part in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [
                one + two for one in templates(left, assigned) or ["…"] for two in templates(right, assigned) or ["…"]
            ]
        case ast.IfExp(body=one, orelse=two):
            return templates(one, assigned) + templates(two, assigned)
        case ast.Name(id=name) if name in assigned:
            others = {other: values for other, values in assigned.items() if other != name}
            return [text for value in assigned[name] for text in templates(value, others)]
        case _:
            return []


def assignments(body: list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """Return what is assigned to each name in these statements, without the functions within them."""
    found: dict[str, list[ast.expr]] = {}
    left: list[ast.AST] = list(body)
    while left:
        node = left.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
        left += ast.iter_child_nodes(node)
    return found


def calls(
    body: list[ast.stmt], around: dict[str, list[ast.expr]]
) -> Iterator[tuple[ast.Call, dict[str, list[ast.expr]]]]:
    """Yield each call with what the names around it stand for."""
    assigned = around | assignments(body)
    left: list[ast.AST] = list(body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from calls(node.body, assigned)
            continue
        if isinstance(node, ast.Call):
            yield node, assigned
        left += ast.iter_child_nodes(node)


def messages(source: Path) -> Iterator[tuple[str, str]]:
    """Yield the error's class and the message of each error that a module makes."""
    for call, assigned in calls(ast.parse(source.read_text()).body, {}):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name == "warn" and call.args:
            kinds = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
            name = next((kind.id for kind in kinds if isinstance(kind, ast.Name)), "UserWarning")
        elif not (is_error(name) and call.args):
            continue
        for text in templates(call.args[0], assigned):
            if text.strip("…: \n"):
                yield name, text


def of_package(package: str) -> list[tuple[str, str]]:
    """Return all messages of a package, without its test tools: sorted, each once."""
    sources = (path for path in (ROOT / "packages" / package / "src").rglob("*.py") if "testing" not in path.parts)
    return sorted(
        {found for source in sources for found in messages(source)}, key=lambda found: (found[0], found[1].lower())
    )


class Messages(SphinxDirective):
    """A list of messages, class by class."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found = of_package(self.arguments[0])
        result: list[nodes.Node] = []
        for name in dict.fromkeys(name for name, _ in found):
            result.append(nodes.paragraph("", "", nodes.literal("", name), classes=["message-class"]))
            items = nodes.bullet_list()
            items.extend(
                nodes.list_item("", nodes.paragraph("", "", nodes.literal("", text)))
                for kind, text in found
                if kind == name
            )
            result.append(items)
        return result


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("messages", Messages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
