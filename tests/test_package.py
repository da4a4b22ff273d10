"""What an installation puts into site-packages."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parent.parent


def test_one_package_is_installed() -> None:
    """Everything installs under `eddy`: no package of ours is called service, training, clients or protos."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        where = tomllib.load(file)["tool"]["setuptools"]["packages"]["find"]["where"]
    packages = [package for folder in where for package in find_packages(str(ROOT / folder))]
    assert {package.partition(".")[0] for package in packages} == {"eddy"}
    assert {"eddy.inspection", "eddy.service", "eddy.training", "eddy.clients", "eddy.oip", "eddy.v1"} <= set(packages)


def test_package_data_exists() -> None:
    """Every pattern of package data matches files: recipes and protos travel with the package."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT / "src" / Path(*package.split("."))
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: {pattern} matches nothing"
