from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("estimator", "bench", "reports")
ECHARTS = "reports/vendor/echarts"
ONLY_IN_SOURCE = {
    f"{ECHARTS}/{name}" for name in (".npmrc", "build.js", "entry.js", "package.json", "package-lock.json")
}


def files_of(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts)
    }


def build(target: str, source: Path, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [path] = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    [source] = [path for path in folder.iterdir() if path.is_dir()]
    return source


@pytest.fixture(scope="module", params=["a checkout", "the source distribution"])
def wheel(request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that each of them makes, unpacked: only a checkout has the links that editable installs need."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", ROOT if request.param == "a checkout" else sdist, folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_source_distribution_holds_code_data_and_tests(sdist: Path) -> None:
    expected = {"LICENSE", "README.md", "pyproject.toml", "Makefile"}
    expected = expected.union(*map(files_of, (*PACKAGES, "tests")))
    assert {name for name in expected if not (sdist / name).is_file()} == set()


def test_the_wheel_holds_each_package_once_under_lorabench(wheel: Path) -> None:
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    installed = {name for name in files if ".dist-info/" not in name}
    source = {name.removeprefix("src/") for name in files_of("src") if not name.startswith(linked())}
    linked_files = set().union(*map(files_of, PACKAGES)) - ONLY_IN_SOURCE
    assert installed == source | {f"lorabench/{name}" for name in linked_files}


def linked() -> tuple[str, ...]:
    return tuple(f"src/lorabench/{package}/" for package in PACKAGES)


def test_the_wheel_holds_the_data_that_commands_read(wheel: Path) -> None:
    package = wheel / "lorabench"
    assert len(list(package.glob("estimator/models/configs/**/*.json"))) >= 40
    assert list(package.glob("bench/suites/*.yaml"))
    assert list(package.glob("reports/templates/*.html"))
    assert (package / ECHARTS / "echarts.min.js").stat().st_size > 100_000
    assert (package / "py.typed").is_file()


def test_the_wheel_holds_every_licence(wheel: Path) -> None:
    [info] = wheel.glob("*.dist-info")
    licences = {
        path.relative_to(info / "licenses").as_posix() for path in (info / "licenses").rglob("*") if path.is_file()
    }
    vendored = {name for name in files_of(ECHARTS) if Path(name).name.startswith(("LICENSE", "NOTICE"))}
    assert licences == {"LICENSE"} | vendored
    assert f"{ECHARTS}/LICENSE" in vendored


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models"], ["gpus"], ["estimate", "meta-llama/Llama-3.1-8B", "--method", "qlora", "--gpu", "24GB"]],
)
def test_the_wheel_works_with_the_required_dependencies_alone(wheel: Path, arguments: list[str]) -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.partition(">=")[0] for name in required} == {"click", "msgspec", "packaging", "PyYAML", "rich"}
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        allowed = {{"lorabench", "click", "msgspec", "packaging", "yaml", "_yaml", "rich"}}
        allowed |= {{"pygments", "markdown_it", "mdurl"}}
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(wheel)!r})
import lorabench
assert lorabench.__file__.startswith({str(wheel)!r})
from lorabench.cli import main
main({arguments!r})
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=wheel)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout
