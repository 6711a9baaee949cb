"""The first snippet of each package's README runs in a new environment with nothing but what the README installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from docs.test_snippets import BLOCKS, ROOT, VARIABLES, program, server_of

if TYPE_CHECKING:
    from containers.servers import ServerFactory

UV = shutil.which("uv")
READMES = sorted(ROOT.glob("packages/*/README.md"))
FIRST = {page.parent.name: next(block for block in BLOCKS if block.page == page) for page in READMES}
INSTALL = re.compile(r'^pip install "?(pool-[a-z0-9]+(?:\[[a-z0-9,]+\])?)"?', re.MULTILINE)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages of this repository, as an index would have them."""
    place = tmp_path_factory.mktemp("wheels")
    for page in READMES:
        subprocess.run(
            [UV or "", "build", "--quiet", "--wheel", "--out-dir", place, page.parent], check=True, timeout=60
        )
    return place


@pytest.mark.skipif(UV is None, reason="needs uv: pip install uv")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("package", FIRST)
def test_the_first_snippet_runs_with_nothing_but_the_package(
    package: str, wheels: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What a new user copies first must not need a second package."""
    block = FIRST[package]
    wanted = INSTALL.search(block.page.read_text())
    assert wanted, f"{package}/README.md has no line pip install"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_URL") and key != "PYTHONPATH"}
    if (kind := server_of(block)) is not None:
        server: ServerFactory = request.getfixturevalue("server")
        url = server(kind).url
        environment |= {"DATABASE_URL": url, VARIABLES.get(kind, "DATABASE_URL"): url}
    else:
        url = None
    venv = tmp_path / "venv"
    subprocess.run([UV or "", "venv", "--quiet", "--python", sys.executable, venv], check=True, timeout=60)
    python = next(venv.glob("*/python"))
    install = [UV or "", "pip", "install", "--quiet", "--python", python, "--find-links", wheels, wanted[1]]
    subprocess.run(install, check=True, timeout=120)
    file = tmp_path / "first.py"
    file.write_text(program(block, url))
    command = [python, "-I", "-W", "error", file]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, f"{block}:\n{done.stdout}\n{done.stderr}"
