"""Under which licences omokage and all that it is made of come. MAIN: `licences`.

Packages are those that are installed here and that omokage needs, directly or not; models are those that it brings, and
weights that were installed beside it. The list is read from the packages' own metadata, nothing is looked up elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from omokage.errors import InputError
from omokage.trust.release import check_writable, release_text
from omokage.weights.registry import CommercialUse
from omokage.weights.store import Condition, inspect_all

Kind = Literal["package", "model", "weights"]
ROOT = "omokage"
UNKNOWN = "not stated"


@dataclass(frozen=True, slots=True)
class Component:
    """Something that omokage is made of.

    part_in: the commands that it takes part in, none for all of them.  about: what else there is to know.
    """

    kind: Kind
    name: str
    version: str
    licence: str
    part_in: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True, slots=True)
class Licences:
    """components: packages, then models, then weights, each by name."""

    components: tuple[Component, ...]

    def to_text(self) -> str:
        width = max(len(f"{one.name} {one.version}") for one in self.components)
        lines = []
        for one in self.components:
            about = f"  ({one.about})" if one.about else ""
            lines.append(f"{one.kind:8} {f'{one.name} {one.version}':{width}}  {one.licence}{about}")
        return "\n".join(lines)

    def to_bill(self) -> dict[str, Any]:
        """A software bill of materials: CycloneDX 1.6 (ECMA-424)."""
        return {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": _entry(_own(self.components))},
            "components": [_entry(one) for one in self.components if one.name != ROOT],
        }


def licences(command: str | None = None) -> Licences:
    """Everything, or what takes part in what one command makes ('speak'). Raises InputError for an unknown command."""
    found = (*_packages(), *_models(), *_weights())
    if command is None:
        return Licences(found)
    known = {name for one in found for name in one.part_in}
    if command not in known:
        raise InputError(
            f"'{command}' makes nothing that leaves omokage; take one of {', '.join(sorted(known))}"
        )
    return Licences(tuple(one for one in found if not one.part_in or command in one.part_in))


def write_bill(found: Licences, path: Path) -> None:
    """Write the bill of materials. Raises OutputError."""
    check_writable(path, (".json",))
    release_text(json.dumps(found.to_bill(), indent=2) + "\n", path)


def _packages() -> tuple[Component, ...]:
    notes = _facts()["packages"]
    found = []
    for name, package in sorted(_needed(ROOT).items()):
        known = notes.get(name, {})
        licence = known.get("licence") or _stated(package)
        found.append(Component("package", name, package.version, licence, about=known.get("note", "")))
    return tuple(found)


def _models() -> tuple[Component, ...]:
    return tuple(
        Component(
            "model", one["name"], "", one["licence"], tuple(one["part_in"]), f"{one['about']}; {one['from']}"
        )
        for one in sorted(_facts()["models"], key=lambda one: str(one["name"]))
    )


def _weights() -> Iterator[Component]:
    for state in inspect_all():
        if state.condition is not Condition.ABSENT:
            is_free = state.spec.commercial is CommercialUse.YES
            about = "" if is_free else f"commercial use: {state.spec.commercial.value}"
            yield Component("weights", state.spec.title, "", state.spec.licences, ("animate",), about)


def _needed(name: str, extras: frozenset[str] | None = None) -> dict[str, Distribution]:
    """Installed packages that a package needs, itself among them. extras: None takes all of the package's."""
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str] | None]] = [(name, extras)]
    asked: set[tuple[str, frozenset[str] | None]] = set()
    while waiting:
        one = waiting.pop()
        if one in asked:
            continue
        asked.add(one)
        try:
            package = distribution(one[0])
        except PackageNotFoundError:
            continue  # of an extra that is not installed, or of another system
        found[re.sub(r"[-_.]+", "-", one[0]).lower()] = package
        wanted = (
            one[1]
            if one[1] is not None
            else frozenset(package.metadata.get_all("Provides-Extra") or ()) - {"dev"}
        )
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *wanted)):
                waiting.append((needed.name, frozenset(needed.extras)))
    return found


def _stated(package: Distribution) -> str:
    """What a package's metadata say: the expression, one line of free text, or the classifiers."""

    def stated(field: str) -> list[str]:
        return package.metadata.get_all(field) or []

    if expression := stated("License-Expression"):
        return expression[0]
    classified = [line.split(" :: ")[-1] for line in stated("Classifier") if line.startswith("License")]
    free = " ".join(stated("License")).strip()
    if free and "\n" not in free and len(free) < 60:
        return free
    return " AND ".join(classified) or UNKNOWN


def _own(components: tuple[Component, ...]) -> Component:
    return next(one for one in components if one.name == ROOT)


def _entry(one: Component) -> dict[str, Any]:
    """A component of CycloneDX; a licence that is no SPDX expression goes by its name."""
    is_package = one.kind == "package"
    entry: dict[str, Any] = {
        "type": ("application" if one.name == ROOT else "library")
        if is_package
        else "machine-learning-model",
        "name": one.name,
        "licenses": [{"license": {"name": one.licence}}],
    }
    if one.version:
        entry["version"] = one.version
    if is_package:
        entry["bom-ref"] = f"{one.name}@{one.version}"
    if one.about:
        entry["description"] = one.about
    return entry


@cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((files("omokage.pipelines") / "licence_facts.json").read_text("utf-8"))
    return facts
