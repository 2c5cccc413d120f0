"""What README.md and docs/ say about the files of the project is true."""

import re

import pytest
from conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
MAX_LINES = 200


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MAX_LINES


def test_ci_runs_the_test_command_that_the_readme_prints():
    command = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert f"\n    {command}\n" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


def file_tree():
    """The indented block that lists the files."""
    blocks = re.findall(r"(?:^    .*\n)+", README, re.M)
    (tree,) = [block for block in blocks if re.search(r"^    config\.py ", block, re.M)]
    return tree


def test_the_file_tree_names_every_file_and_folder_at_the_top_and_every_module():
    tree = file_tree()
    names = {path.name for pattern in ("*.py", "*.txt", "*.toml") for path in PROJECT.glob(pattern)}
    names |= {f"{path.parent.name}/" for path in [*PROJECT.glob("*/*.py"), *PROJECT.glob("docs/*.md")]}
    names |= {path.name for path in (PROJECT / "captcha_cnn").glob("[!_]*.py")}
    for name in sorted(names):
        assert re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w.])", tree), f"{name} is not in the file tree"


def test_every_module_that_the_file_tree_names_exists():
    for name in re.findall(r"\w+\.py", file_tree()):
        assert (PROJECT / name).exists() or (PROJECT / "captcha_cnn" / name).exists(), name


def test_every_test_that_the_reliability_page_names_exists():
    page = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 50
    for file, function in named:
        source = (PROJECT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", source, re.M), f"{file}::{function}"
    assert page.count(".py::") == len(named), "a name in another form"
