"""How the documentation is built; `scripts/docs` does it."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The checkout's own package and the extension beside this file, whatever else is installed.
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from autocompress import __version__  # noqa: E402

project = "autocompress"
author = "the autocompress maintainers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated",
]
exclude_patterns = ["_build", "_ext"]

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# One table for all attributes of a record, in the place where its docstring names them.
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"autocompress {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
# The pages of the gallery.
html_extra_path = ["../reports/sample"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
