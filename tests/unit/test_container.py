"""The image's recipe: its versions are those that pyproject.toml allows, its user is not root, and it stays offline."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

BASE_IMAGE_BRINGS = {"torch"}
EXTRAS = ("evaluate", "near-duplicates", "plots")


@pytest.fixture(scope="module")
def dockerfile(repository: Path) -> str:
    return (repository / "container/Dockerfile").read_text()


def pins(repository: Path) -> dict[str, Version]:
    lines = (repository / "container/constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert len(dict(pairs)) == len(pairs), "a package is listed twice"
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_versions_are_those_that_the_package_allows(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    pinned = pins(repository)
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name in BASE_IMAGE_BRINGS:
            assert name not in pinned, f"the base image brings {name}: a version here would replace it"
            continue
        assert name in pinned, f"container/constraints.txt has no version of {name}"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is not in {requirement.specifier}"


def test_the_recipe_installs_those_extras_and_this_version(repository: Path, dockerfile: str) -> None:
    assert f"/opt/megatron-mixcpt[{','.join(EXTRAS)}]" in dockerfile
    version = re.search(r'__version__ = "(.*)"', (repository / "megatron_mixcpt/__init__.py").read_text())[1]
    assert f"-t megatron-mixcpt:{version} ." in dockerfile
    manifest = (repository / "examples/kubernetes/pretrain_mixcpt.yaml").read_text()
    assert f"/megatron-mixcpt:{version}\n" in manifest
    assert f"megatron-mixcpt:{version}" in (repository / "docs/how-to/run-in-a-container.md").read_text()


def test_the_base_image_has_an_exact_version(dockerfile: str) -> None:
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", dockerfile, re.MULTILINE)
    assert re.fullmatch(r"nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3", base)


def test_it_runs_offline_and_not_as_root(dockerfile: str) -> None:
    for switch in ("HF_HUB_OFFLINE=1", "HF_DATASETS_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"):
        assert switch in dockerfile
    users = re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)
    assert users and users[-1] not in {"root", "0"}
    assert dockerfile.rindex("\nUSER ") > dockerfile.rindex("\nRUN "), "what is installed belongs to root"


def test_what_it_copies_exists(repository: Path, dockerfile: str) -> None:
    for sources in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        for source in sources.split():
            assert (repository / source).exists(), source
