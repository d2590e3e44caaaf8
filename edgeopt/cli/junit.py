"""Verdicts as JUnit XML, which every CI server reads: one test case a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from edgeopt.errors import EdgeoptError
    from edgeopt.verdict import ParityReport


def write_junit(path: Path, bundle: str, verdicts: Mapping[str, ParityReport | EdgeoptError]) -> None:
    """Write a file in which a no is a failure, and a verdict that could not be had is an error."""
    from edgeopt.atomic import write_bytes
    from edgeopt.cli.costs import cost_facts
    from edgeopt.errors import EdgeoptError

    suite = ElementTree.Element("testsuite", name=f"edgeopt verify {bundle}", tests=str(len(verdicts)))
    counts = {"failures": 0, "errors": 0}
    for device, verdict in verdicts.items():
        case = ElementTree.SubElement(suite, "testcase", classname=f"edgeopt.verify.{bundle}", name=device)
        if isinstance(verdict, EdgeoptError):
            counts["errors"] += 1
            ElementTree.SubElement(case, "error", type=type(verdict).__name__, message=verdict.message)
            continue
        properties = ElementTree.SubElement(case, "properties")
        for name, value in (("runtime", verdict.runtime), ("kernels", verdict.kernels), *cost_facts(verdict.cost)):
            ElementTree.SubElement(properties, "property", name=name, value=value)
        if not verdict.passed:
            counts["failures"] += 1
            ElementTree.SubElement(case, "failure", message="; ".join(verdict.failures))
        lines = (
            f"{output.name}: {output.max_steps} steps, {output.sqnr_db:.1f} dB, cosine {output.cosine:.4f}"
            for output in verdict.outputs
        )
        ElementTree.SubElement(case, "system-out").text = "\n".join([verdict.runtime, *lines])
    suite.attrib.update({name: str(count) for name, count in counts.items()})
    ElementTree.indent(suite)
    write_bytes(path, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True) + b"\n")
