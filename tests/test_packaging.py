"""The wheel holds the packages of the tree and nothing else, the sdist makes the same one, and it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("build") is None, reason="the package build is not installed"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: what belongs to it is unknown"),
]


def run(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def build(kind, source, target):
    """Build a wheel or an sdist of a source tree into a folder; gives its path."""
    said = run("-m", "build", "--no-isolation", f"--{kind}", "--outdir", target, ".", cwd=source)
    warned = [line for line in (said.stdout + said.stderr).splitlines() if "warning" in line.lower()]
    assert not [line for line in warned if "deprecat" in line.lower() or "cannot be found" in line], warned
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what belongs to the checkout: files that git knows, or would if they were added."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folder = tmp_path_factory.mktemp("source")
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


def package_files(source):
    """Files that must be in the wheel, by their place there, from the tree itself."""
    parser = ConfigParser()
    parser.read(source / "setup.cfg", encoding="utf-8")
    places = dict(line.split(" = ") for line in parser["options"]["package_dir"].strip().splitlines())
    found = {}
    for package, place in places.items():
        for path in (source / place).rglob("*"):
            if path.suffix in {".py", ".json", ".j2", ".typed"}:
                found[f"{package}/{path.relative_to(source / place).as_posix()}"] = path.read_bytes()
    return found


def contents(wheel):
    """Files of a wheel by name, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_exactly_the_packages_of_the_tree(wheel, source):
    expected, found = package_files(source), contents(wheel)
    assert len(expected) > 60
    assert sorted(found) == sorted(expected)
    assert found == expected


def test_the_wheel_installs_no_tests_and_no_package_called_plugins(wheel):
    tops = {name.split("/")[0] for name in contents(wheel)}
    assert tops == {
        *("oaplug", "oaplug_backbones", "oaplug_heads", "oaplug_analyses", "oaplug_converters"),
        *("oaplug_callbacks", "oaplug_datasets_meta"),
    }


def test_every_plugin_folder_of_the_tree_is_in_the_wheel(wheel, source):
    folders = {path.parent.name for path in (source / "plugins").glob("*/__init__.py")}
    assert folders <= {name.split("/")[0] for name in contents(wheel)}


def test_the_wheel_is_for_every_platform_and_has_a_licence_and_a_readme(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert [name for name in names if ".dist-info/" in name and name.endswith("LICENSE")]
    assert "Requires-Python: >=3.10" in text
    assert len(text.split("\n\n", 1)[1]) > 500, "the README is the long description"


def test_the_sdist_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = build("wheel", unpacked, tmp_path / "wheel")
    assert contents(again) == contents(wheel)


def test_an_installed_wheel_lists_its_parts_and_reads_its_data(wheel, tmp_path):
    site = tmp_path / "site"
    quiet = ("--quiet", "--disable-pip-version-check")
    run("-m", "pip", "install", *quiet, "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    said = run("-m", "oaplug", "plugins", "--json", cwd=tmp_path, PYTHONPATH=str(site))
    content = json.loads(said.stdout)
    assert content["quarantined"] == []
    names = {(part["kind"], part["name"]) for part in content["parts"]}
    assert {("backbone", "resnet3d"), ("head", "single"), ("head", "dual")} <= names
    assert {("converter", "phantom"), ("analysis", "classification")} <= names
    code = """
import oaplug, oaplug_heads, oaplug_datasets_meta
from importlib import resources
print(oaplug.__file__, oaplug_heads.__file__, sep="\\n")
assert oaplug_datasets_meta.read_meta("knee_phantom")["targets"]
assert resources.files("oaplug.study").joinpath("report.html.j2").is_file()
assert resources.files("oaplug").joinpath("py.typed").is_file()
"""
    places = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).stdout.splitlines()
    assert all(Path(place).is_relative_to(site) for place in places), "the wheel's, not the checkout's"
    scripts = {path.name for path in (site / "bin").iterdir()}
    assert {"oaplug", "oaplug_train", "oaplug_plan_and_preprocess"} <= scripts
