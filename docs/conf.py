"""The documentation site: Sphinx, furo, MyST. `nox -s docs` builds it, a warning being an error, and runs its snippets."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))

project = "pool-core"
author = "the pool-core contributors"
copyright = author
release = tomllib.loads((ROOT / "packages/pool-core/pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pool_docs", "pool_messages"]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 90
# `Pool` in an annotation is that of pool_core or that of pool_core.threads: the text says which.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = "pool-core"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
