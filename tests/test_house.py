"""The house rules, read from the syntax trees: direction of imports, sizes, docstrings, annotations."""

import ast
import configparser
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_sharegpt4v", "dataset_scripts", "captioning", "trainers", "evaluation", "analysis")
PACKAGES += ("model_cards", "space", "sharegpt4v")
# What each package may import of ours; the longest matching name counts. `sharegpt4v` is on top of all.
ALLOWED = {
    "modeling_sharegpt4v": set(),
    "dataset_scripts": {"modeling_sharegpt4v.images_sharegpt4v"},
    "dataset_scripts.schema": {"dataset_scripts.constants"},
    "dataset_scripts.constants": set(),
    "captioning": {"dataset_scripts", "modeling_sharegpt4v.images_sharegpt4v"},
    "trainers": {"modeling_sharegpt4v", "dataset_scripts.schema"},
    "evaluation": {"dataset_scripts.schema"},
    "analysis": {"dataset_scripts.schema"},
    "model_cards": {"modeling_sharegpt4v"},
    "space": set(),
    "sharegpt4v": set(PACKAGES),
}
SHIPPED_IMPORTS = {"torch", "transformers", "PIL", "numpy", "base64", "io", "os", "pathlib", "typing", "urllib"}
LIBRARY = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
SHIPPED = sorted((ROOT / "modeling_sharegpt4v").glob("*_sharegpt4v.py"))
PYTHON = sorted([*LIBRARY, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything a file imports, one entry a name."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    names = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def forbidden_imports(module: str, names: set[str]) -> list[str]:
    """Of what `module` imports, the names of ours that the design does not allow."""
    own = max((rule for rule in ALLOWED if within(module, rule)), key=len)
    top = own.split(".")[0]
    allowed = ALLOWED[own] | ({own} if "." in own else {top})
    ours = [name for name in names if name.split(".")[0] in PACKAGES]
    return sorted(name for name in ours if not any(within(name, rule) for rule in allowed))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_direction_of_the_design(path):
    assert forbidden_imports(module_of(path), imports_of(path)) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("trainers.train", "captioning.engine"),
        ("trainers.train", "dataset_scripts.build.write_repo"),
        ("modeling_sharegpt4v.composition", "trainers.train"),
        ("dataset_scripts.schema", "dataset_scripts.build"),
        ("dataset_scripts.build", "modeling_sharegpt4v.compose"),
        ("evaluation.runner", "modeling_sharegpt4v"),
    ],
)
def test_the_rule_itself_refuses_what_the_design_forbids(module, name):
    assert forbidden_imports(module, {name}) == [name]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_files_that_travel_with_a_checkpoint_import_only_what_the_hub_has(path):
    own = {module_of(other) for other in SHIPPED}
    for name in imports_of(path):
        assert name.split(".")[0] in SHIPPED_IMPORTS or any(within(name, module) for module in own), name
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[path]):
        if isinstance(node, FUNCTION):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} in line {node.lineno}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_code_has_no_print_assert_or_bare_except(path):
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"print in line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert node.type is not None and not silent, f"except in line {node.lineno}"


def public_definitions() -> list[tuple[Path, ast.AST]]:
    found = []
    for path in LIBRARY:
        for node in ast.walk(TREES[path]):
            if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
                found.append((path, node))
    return found


def test_nine_of_ten_public_definitions_and_every_module_have_a_docstring():
    definitions = public_definitions()
    bare = [f"{module_of(path)}.{node.name}" for path, node in definitions if not ast.get_docstring(node)]
    assert len(bare) <= 0.1 * len(definitions), bare
    assert [module_of(path) for path in LIBRARY if not ast.get_docstring(TREES[path])] == []


def test_nearly_all_parameters_are_annotated():
    total, bare = 0, []
    for path in LIBRARY:
        for node in ast.walk(TREES[path]):
            if isinstance(node, FUNCTION):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments = [argument for argument in arguments if argument.arg not in ("self", "cls")]
                total += len(arguments)
                bare += [f"{module_of(path)}.{node.name}" for argument in arguments if argument.annotation is None]
    assert len(bare) <= 0.05 * total, bare


def test_the_wheel_holds_every_package():
    listed = configparser.ConfigParser()
    listed.read(ROOT / "setup.cfg")
    folders = {module_of(path) for path in LIBRARY if path.name == "__init__.py"}
    assert set(listed["options"]["packages"].split()) == folders


def test_no_tracked_file_is_larger_than_one_megabyte():
    skipped = {".git", ".venv", "runs", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    for path in ROOT.rglob("*"):
        if path.is_file() and not skipped & set(path.relative_to(ROOT).parts):
            assert path.stat().st_size <= 1_000_000, path
