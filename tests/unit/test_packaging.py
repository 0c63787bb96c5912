"""The source distribution has all that is in the repository, and the metadata says only what is true."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_DISTRIBUTED = {'.ci', '.gitignore', '.gitattributes'}
BY_THEMSELVES = {'postage', 'pyproject.toml', 'setup.py', 'MANIFEST.in'}  # what setuptools takes without being told


@pytest.mark.skipif(not (ROOT / '.git').exists() or shutil.which('git') is None, reason='needs the repository')
def test_the_source_distribution_has_every_file_of_the_repository() -> None:
    listed = subprocess.run(
        ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    ).stdout.split('\0')
    there = {name.partition('/')[0] for name in listed if name}
    manifest = (ROOT / 'MANIFEST.in').read_text()
    taken = {word for line in re.findall('^(?:include|graft) (.*)$', manifest, re.MULTILINE) for word in line.split()}
    assert there - NOT_DISTRIBUTED - BY_THEMSELVES == taken


def test_the_urls_of_the_package_have_names_that_an_index_takes() -> None:
    _, _, rest = (ROOT / 'pyproject.toml').read_text().partition('[project.urls]\n')
    urls = re.findall(r'^"?([^"=\n]+?)"? = "(https://[^"]+)"$', rest.partition('\n[')[0], re.MULTILINE)
    assert urls == [('Original project (1.2)', 'https://github.com/lgiordani/postage')]
    assert all(len(name) <= 32 for name, _ in urls)
