"""The site: ``make docs`` makes it of the pages in this directory."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / '_extensions'), str(HERE.parent)]

import postage  # noqa: E402

project = 'Postage'
author = 'Postage contributors'
version = release = postage.__version__

extensions = ['sphinx.ext.autodoc', 'contents_beside', 'from_the_code', 'offline_links']
exclude_patterns = ['_extensions']
highlight_language = 'text'
keep_warnings = False

html_theme = 'furo'
html_title = f'Postage {postage.__version__}'
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
