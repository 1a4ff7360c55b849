"""Import direction cli -> pipeline -> stages -> stages.networks, the order of the packages of
pipeline/, and packaging of every package."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("benchmarks", "configs", "fitting", "pipeline", "stages")
FORBIDDEN = {
    "stages/networks": ("ray", "dhr_batch.pipeline", "dhr_batch.fitting", "dhr_batch.cli"),
    "stages": ("ray", "dhr_batch.pipeline", "dhr_batch.fitting", "dhr_batch.cli"),
    "pipeline": ("dhr_batch.cli",),
}
# The packages of pipeline/: each may import the modules of pipeline/ itself and the packages before
# it, never one behind it.
ORDER = (
    "storage",
    "models",
    "tables",
    "datasets",
    "runs",
    "planning",
    "worker",
    "stats",
    "report",
    "engine",
    "bench",
    "export",
    "editing",
    "cli",
)
# What the networks may share of `stages`: the context and the registry.
NETWORKS_MAY = (
    "dhr_batch.stages.networks",
    "dhr_batch.stages.context",
    "dhr_batch.stages.registry",
)
HEAVY = ("torch", "torchvision", "ray", "skimage", "sklearn", "cv2", "facenet_pytorch", "dlib")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_module_level(tree: ast.Module) -> ast.Module:
    kept = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return ast.Module(body=list(kept), type_ignores=[])


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert len(found) > 1, f"{folder} holds no modules"
    return found


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("dhr_batch", *parts)).removesuffix(".__init__")


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports anywhere: in functions and for types too."""
    files = [*ROOT.glob("*.py"), *(file for top in TOPS for file in (ROOT / top).rglob("*.py"))]
    modules = {module_of(file): file for file in files}
    found: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = set(imports(ast.parse(file.read_text("utf-8"))))
        # `from package import name`: the module `package.name`, or a name in the module `package`.
        found[module] = {n if n in modules else n.rpartition(".")[0] for n in names} & {*modules}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_direction(folder: str) -> None:
    for file in sources(folder):
        for name in imports(ast.parse(file.read_text("utf-8"))):
            assert not inside(name, FORBIDDEN[folder]), f"{file.relative_to(ROOT)} imports {name}"


def test_networks_do_not_import_stages() -> None:
    for file in sources("stages/networks"):
        for name in imports(ast.parse(file.read_text("utf-8"))):
            if name.startswith("dhr_batch."):
                assert inside(name, NETWORKS_MAY), f"{file.name} imports {name}"


def test_packages_of_the_pipeline_import_only_those_before_them(
    arrows: dict[str, set[str]],
) -> None:
    folders = {file.parent.name for file in (ROOT / "pipeline").glob("*/__init__.py")}
    assert folders == {*ORDER}
    floors = {package: floor for floor, package in enumerate(ORDER, 1)}

    def floor(module: str) -> int:
        return floors.get(module.removeprefix("dhr_batch.pipeline.").partition(".")[0], 0)

    upwards = [
        f"{module} imports {target}"
        for module, targets in arrows.items()
        if module.startswith("dhr_batch.pipeline.")
        for target in targets
        if floor(target) > floor(module)
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle(arrows: dict[str, set[str]]) -> None:
    left = dict(arrows)
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    assert sorted(left) == [], "in a circle, or imported by one"


def test_pipeline_imports_no_torch_at_module_level() -> None:
    for file in sources("pipeline"):
        for name in imports(at_module_level(ast.parse(file.read_text("utf-8")))):
            assert not inside(name, ("torch", "torchvision")), f"{file.name} imports {name}"


def test_packages_are_listed() -> None:
    """A package missing from the list works in an editable install and is absent from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {"dhr_batch"} | {
        "dhr_batch." + ".".join(file.parent.relative_to(ROOT).parts)
        for top in TOPS
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found
    for top in TOPS:
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{file} is in no package"


def test_import_is_light() -> None:
    code = (
        "import time; t = time.perf_counter(); import dhr_batch; s = time.perf_counter() - t\n"
        "import sys; print(s, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    # Not the time, which depends on the machine, but what it would be spent on.
    print(f"\nimport dhr_batch: {1000 * float(seconds):.1f} ms, {len(modules)} modules")
    assert not {*HEAVY, "pyarrow", "pandas", "numpy", "PIL", "pydantic"} & set(modules)


def test_drivers_and_workers_are_light() -> None:
    """Each process of a run keeps what it has imported."""
    code = "import sys, dhr_batch.pipeline.engine.runner; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pandas", "pyarrow.dataset", "scipy"} & set(done.stdout.split())
