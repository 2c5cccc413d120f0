"""The layout of the project, derived from its sources: who imports whom, sizes, what an import does."""

import ast
import functools
import os
import subprocess
import sys

import pytest
from conftest import PROJECT

CLASSIC_FILES = ("config", "generate_captcha", "cnn_model", "driver")
SCRIPTS_THAT_MAY_BE_IMPORTED = {  # by scripts; benchmarks and tests may import every script
    "driver": {"cnn_model", "generate_captcha"},
    "predict": {"cnn_model"},
    "export": {"cnn_model"},
}
MAX_LINES_OF_CLASSIC_FILES = 1000
MAX_LINES_OF_FUNCTION = 40
MAX_PARAMETERS = 6


def find_sources():
    """The path of each module of the project by its dotted name, tests not included."""
    sources = {path.stem: path for path in PROJECT.glob("*.py")}
    for init in PROJECT.glob("*/__init__.py"):
        for path in init.parent.rglob("*.py"):
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            sources[name.removesuffix(".__init__")] = path
    return sources


SOURCES = find_sources()
SCRIPTS = {name for name in SOURCES if "." not in name and SOURCES[name].parent == PROJECT} - {"config"}


@functools.cache
def syntax_tree(module):
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def nodes(tree, when_imported=False):
    """All nodes of a syntax tree, or only those that run when the module is imported."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (when_imported and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from nodes(child, when_imported)


def imported_names(module, when_imported=False):
    """The dotted names that a module imports, `from a import b` as a and a.b, in functions too."""
    names = set()
    for node in nodes(syntax_tree(module), when_imported):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which is not understood here"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def project_imports(module, when_imported=False):
    """The modules of the project that a module imports; a.b imports a, too."""
    names = {module, *imported_names(module, when_imported)}
    packages = {name.rpartition(".")[0] for name in names}
    return ((names | packages) & SOURCES.keys()) - {module}


def top_level(names):
    return {name.partition(".")[0] for name in names}


def needs_tensorflow(module, seen=frozenset()):
    """Whether TensorFlow is imported when a module is."""
    if "tensorflow" in top_level(imported_names(module, when_imported=True)):
        return True
    imports = project_imports(module, when_imported=True) - seen
    return any(needs_tensorflow(each, seen | imports) for each in imports)


def test_the_project_is_found():
    assert {*CLASSIC_FILES, "predict", "export", "captcha_cnn", "captcha_cnn.cli", "benchmarks"} <= set(
        SOURCES
    )
    assert {"captcha_cnn.cli", "captcha_cnn", "config"} < project_imports("driver")
    assert "cnn_model" in project_imports("driver"), "an import inside a function is overlooked"
    assert "cnn_model" not in project_imports("driver", when_imported=True)


# ---------------------------------------------------------------------- imports


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("captcha_cnn")])
def test_package_modules_import_only_config_and_each_other(module):
    assert top_level(project_imports(module)) <= {"config", "captcha_cnn"}


def test_config_imports_nothing_of_the_project():
    assert not project_imports("config")


@pytest.mark.parametrize("module", sorted(SCRIPTS))
def test_scripts_import_only_the_classic_files_that_they_are_allowed_to(module):
    scripts = top_level(project_imports(module)) - {"config", "captcha_cnn"}
    assert scripts <= SCRIPTS_THAT_MAY_BE_IMPORTED.get(module, set())


def test_no_import_cycle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for each in sorted(project_imports(module)):
            if not module.startswith(f"{each}."):  # its own package may bring together what is inside
                visit(each)
        done.add(path.pop())

    for module in sorted(SOURCES):
        visit(module)


def chain_in_readme():
    """The groups of names in the one line of README.md that shows who imports whom."""
    lines = (PROJECT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line.strip() for line in lines if line.startswith("    config <-")]
    return [[name.strip() for name in group.split(",")] for group in line.split("<-")]


def test_the_import_graph_in_the_readme_is_true():
    groups = chain_in_readme()
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(top_level(SOURCES)), "every module and package occurs once"
    imports = {
        name: top_level(
            each for module in SOURCES if name in top_level([module]) for each in project_imports(module)
        )
        - {name}
        for name in names
    }
    left = set()
    for i, group in enumerate(groups):
        for name in group:
            assert imports[name] <= left, f"{name} imports what is not to the left of it"
        if i > 0:
            assert any(imports[name] & set(groups[i - 1]) for name in group), (
                f"{group} imports nothing of the group to the left"
            )
        left |= set(group)


# ---------------------------------------------------------------------- what an import does

CHECK_IMPORTS = """
import importlib, os, sys, threading
with_tensorflow, without_tensorflow = (argument.split() for argument in sys.argv[1:])

def import_all(modules):
    environment = dict(os.environ)
    for module in modules:
        importlib.import_module(module)
        assert dict(os.environ) == environment, f"{module} changes os.environ"
        assert threading.active_count() == 1, f"{module} starts a thread"
        yield module

for module in import_all(without_tensorflow):
    assert "tensorflow" not in sys.modules, f"{module} imports TensorFlow"
import tensorflow.compat.v1
for module in import_all(with_tensorflow):
    pass
"""


def test_only_modules_that_define_graphs_import_tensorflow():
    need = {module for module in SOURCES if needs_tensorflow(module)}
    themselves = {
        module for module in need if "tensorflow" in top_level(imported_names(module, when_imported=True))
    }
    assert need == themselves, "a module imports TensorFlow only because it imports another"
    assert not need & {"config", "generate_captcha", "driver", "predict", "export", "serve"}


def test_importing_a_module_does_nothing_else(tmp_path):
    modules = [module for module in SOURCES if not module.endswith("__main__")]
    need = [module for module in modules if needs_tensorflow(module)]
    others = [module for module in modules if module not in need]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_IMPORTS, " ".join(need), " ".join(others)],
        cwd=tmp_path,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("module", ["config", *sorted(SCRIPTS - {"cnn_model"})])
def test_importing_a_script_prints_nothing(module, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", f"import sys, {module}; assert 'tensorflow' not in sys.modules"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------------- sizes


def test_the_classic_files_can_be_read_in_one_sitting():
    lines = [len(SOURCES[name].read_text(encoding="utf-8").splitlines()) for name in CLASSIC_FILES]
    assert sum(lines) <= MAX_LINES_OF_CLASSIC_FILES, dict(zip(CLASSIC_FILES, lines, strict=True))


def functions(module):
    """All functions of a module, methods and nested ones too."""
    return [n for n in nodes(syntax_tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(function):
    given = function.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [each.arg for each in found if each and each.arg not in ("self", "cls")]


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_functions_are_short_and_have_few_parameters(module):
    for function in functions(module):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= MAX_LINES_OF_FUNCTION, f"{function.name} has {lines} lines"
        count = len(parameters(function))
        assert count <= MAX_PARAMETERS, f"{function.name} has {count} parameters"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_assert_is_for_tests(module):
    found = [node.lineno for node in nodes(syntax_tree(module)) if isinstance(node, ast.Assert)]
    assert not found, "python -O leaves assertions out: raise an error"
