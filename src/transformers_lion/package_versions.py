"""Versions of installed packages, for reports and results. This module imports none of them."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_version(name: str) -> str | None:
    """Return the version of a package, `None` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages, "not installed" for missing ones."""
    return {"python": platform.python_version()} | {
        name: installed_version(name) or "not installed" for name in packages
    }


__all__ = ["describe_versions", "installed_version"]
