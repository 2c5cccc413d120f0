import ast
import re

from conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
MODULES = {path.stem for path in PROJECT.glob("*.py")}


def imports(path):
    """The project's modules that a file imports, at any depth."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} & MODULES


def test_ci_runs_the_test_command_that_the_readme_prints():
    command = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert f"\n    {command}\n" in README


def test_the_file_map_names_every_file_and_its_imports():
    for path in PROJECT.glob("*.py"):
        row = re.search(rf"^\| `{path.name}` \|.*\|([^|]*)\|$", README, re.M)
        assert row, f"{path.name} is not in the file map"
        assert set(re.findall(r"`(\w+)`", row[1])) == imports(path)


def test_what_the_readme_shows_exists():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (PROJECT / link).exists(), link
