"""Which folder is which package; everything else is in pyproject.toml.

The rooms `export`, `kernels`, `runtime` and `recipes` lie at the top of the repository and install inside `edge_svd`.
Listing them here by search, and not by hand, keeps a new folder from being left out of the wheel.
"""

from __future__ import annotations

from setuptools import find_packages, setup

ROOMS = ("export", "kernels", "runtime", "recipes")

packages = ["edge_svd"] + [f"edge_svd.{name}" for name in find_packages("edge_svd")]
package_dir = {"edge_svd": "edge_svd"}
for room in ROOMS:
    package_dir[f"edge_svd.{room}"] = room
    packages += [f"edge_svd.{room}"] + [f"edge_svd.{room}.{name}" for name in find_packages(room)]

setup(packages=packages, package_dir=package_dir)
