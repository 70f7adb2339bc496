"""No import runs back up the layers that CONTRIBUTING draws."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "slimse"
KERNELS = PACKAGE.parent / "kernels"
LAYERS = (
    ("checks", "atomic", "processes", "width", "kernels", "hub"),
    ("ops",),
    ("nn",),
    ("audio.polyphase", "audio.spectral"),
    ("slimmify", "router", "networks.base", "networks.state", "networks.demucs", "networks", "runtimes.base"),
    ("config", "frame_router"),
    ("model",),
    ("testing", "denoiser", "checkpoint", "runtimes", "runtimes.numba", "profiling", "deadline"),
    ("streaming", "serving", "live", "integrations", "export"),
    ("audio",),
    ("demo", "demo_page", "benchmark", "diagnosis"),
    ("evaluation", "training"),
    ("report", "sharing", "corpus", "serve", "integrations.ray"),
    ("cli",),
)
"""From the lowest up. A module imports those of its own layer and of lower ones."""
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
INSIDE = {"networks.demucs": {"networks.base"}, "networks.base": set(), "networks.state": set(), "runtimes.base": set()}
"""Of modules that share a layer, what they may import of it."""


def part(module):
    """The entry of `LAYERS` that a module, named from the package on, belongs to."""
    names = module.split(".")
    return next((name for size in (2, 1) if (name := ".".join(names[:size])) in RANKS), None)


def imports(path, module):
    """Modules of the package that a file imports when it runs; what is for type checkers alone does not count."""
    tree = ast.parse(path.read_text())
    checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if node in checking or not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            base = ["slimse", *package][: len(package) + 2 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        yield from (name.removeprefix("slimse.") for name in found if name.startswith("slimse."))


def files():
    for folder, prefix in ((PACKAGE, ()), (KERNELS, ("kernels",))):
        for path in sorted(folder.rglob("*.py")):
            if folder is PACKAGE and "kernels" in path.relative_to(folder).parts:
                continue
            yield path, ".".join([*prefix, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module: path for path, module in files() if module not in ("__init__", "__main__")}


def test_every_module_has_a_layer():
    assert [module for module in MODULES if part(module) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_back_up(module):
    own = part(module)
    for target in set(imports(MODULES[module], module)):
        other = part(target)
        if other is None or other == own:
            continue
        assert RANKS[other] <= RANKS[own], f"{module} imports {target}, which is above it"
        if RANKS[other] == RANKS[own] and own in INSIDE:
            assert other in INSIDE[own], f"{module} imports {target} beside it"


def test_an_import_that_runs_up_is_found(tmp_path):
    (tmp_path / "up.py").write_text("from ..runtimes import eager\nfrom ..model import SlimModel\n")
    found = set(imports(tmp_path / "up.py", "networks.up"))
    assert {"runtimes", "runtimes.eager", "model"} <= found
    assert RANKS[part("runtimes.eager")] > RANKS[part("networks.up")]


def test_router_and_networks_know_no_model_and_models_no_runtime():
    for module, path in MODULES.items():
        targets = {part(target) for target in imports(path, module)}
        if part(module) in ("router", "networks", "networks.base", "networks.state", "networks.demucs"):
            assert not targets & {"model", "runtimes", "runtimes.base", "runtimes.numba"}, module
        if module == "router":
            assert not {target for target in targets if target and target.startswith("networks")}, module
        if module == "model":
            assert not targets & {"runtimes", "runtimes.numba", "networks.demucs"}, module
        if part(module) in ("streaming", "serving", "audio", "evaluation", "profiling", "checkpoint", "benchmark"):
            assert not targets & {"networks.demucs", "runtimes.numba"}, module
