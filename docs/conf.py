"""The documentation site: `make docs` builds it without a network, and a warning fails the build."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# Kernels of notebooks: no remark of tqdm about widgets.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress"

project = "posttrace"
author = "the posttrace developers"
version = release = installed("posttrace")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "declared",
    "external_links",
]
exclude_patterns = ["_build", "examples", "images"]
nitpicky = True
# Types of other libraries have their own documentation, which a build without a network cannot look up.
nitpick_ignore_regex = [("py:.*", r"(?!posttrace\b).*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks are always run, since the package may have changed; an error in one fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "posttrace"
html_copy_source = False
html_theme_options = {"footer_icons": []}
