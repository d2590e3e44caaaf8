"""ONNX's own node cases through our lowering and through the peers: how many pass, and how many are silently wrong.

*Expressible* are the cases of operators that TFLite has or can put together, by the list of the test suite. The cases,
how they are frozen and how ours are judged are the test suite's. A peer gets each case in the oldest opset in which its
operator is the same, so that it knows as many as it can, and a judge that forgives more than ours does
(``bench_peer_cases.py`` says what).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_figures import Figure
from bench_network import NotMeasured, last_line
from bench_peers import Peer
from bench_timing import run_watched

_HERE = Path(__file__).parent
_SECONDS = 60  # for one case in one peer
_OLDEST_OPSET, _OLDEST_IR = 13, 10
_WORDS = {
    "passed": "pass",
    "refused": "are refused",
    "not converted": "are not converted",
    "not run": "do not run in LiteRT",
    "rejected": "do not run in LiteRT",
    "crashed": "crash LiteRT",
    "wrong": "are wrong",
}


def node_case_figures(peers: Sequence[Peer], work: Path, count: int) -> Iterator[Figure]:
    """Judge ours, then each peer that takes ONNX, on so many cases; what a peer did is kept in ``work``.

    Cases are taken in the order of a hash of their names, so that fewer than all are a fair sample.
    """
    sys.path.insert(0, str(_HERE.parent / "tests/conformance"))
    from onnx_node_cases import cases_in_scope, frozen, is_expressible, judge_apart

    scope = cases_in_scope()
    expressible = {name for name, case in scope.items() if is_expressible(case)}
    yield from _figures("edgeopt", {outcome.name: outcome.verdict for outcome in judge_apart()}, expressible, "")
    takers = [peer for peer in peers if peer.name.startswith("onnx2tf")]
    if not takers:
        raise NotMeasured("peers: no environment with onnx2tf given with --peer-python")
    cases = work / "node-cases"
    shutil.rmtree(cases, ignore_errors=True)
    for name in sorted(scope, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]:
        case = scope[name]
        model, feeds = frozen(case)
        write_case(cases / name, model, feeds, case)
    for peer in takers:
        verdicts = _judged_by(peer, cases, work / f"node-cases {peer.name}.jsonl")
        yield from _figures(peer.name, verdicts, expressible, peer.tools)


def _figures(label: str, verdicts: Mapping[str, str], expressible: Set[str], tools: str) -> Iterator[Figure]:
    chosen = [verdict for name, verdict in verdicts.items() if name in expressible]
    for what, some in (("expressible", chosen), ("all", list(verdicts.values()))):
        counts = Counter(some)
        share = 100 * counts["passed"] / len(some) if some else None
        told = [f"{counts[verdict]} {words}" for verdict, words in _WORDS.items() if counts[verdict]]
        remark = "; ".join([f"of {len(some)} cases {', '.join(told)}", *([tools] if tools else [])])
        yield Figure("node-cases", "onnx", f"{label}: {what} cases passed", share, "%", remark)
    wrong = sum(verdict == "wrong" for verdict in verdicts.values())
    yield Figure("node-cases", "onnx", f"{label}: silently wrong", wrong, "cases", "no error, and a wrong answer")


def write_case(folder: Path, model: onnx.ModelProto, feeds: Mapping[str, Any], case: Any) -> None:
    """Write one case as ``bench_peer_cases.py`` reads it."""
    oldest = {
        opset.domain: max(
            _OLDEST_OPSET,
            *(
                onnx.defs.get_schema(node.op_type, opset.version, node.domain).since_version
                for node in model.graph.node
                if node.domain == opset.domain
            ),
        )
        for opset in model.opset_import
    }
    for opset in model.opset_import:
        opset.version = oldest[opset.domain]
    model.ir_version = min(model.ir_version, _OLDEST_IR)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    answers = zip((value.name for value in model.graph.output), case.data_sets[0][1], strict=True)
    arrays = {f"input/{name}": array for name, array in feeds.items()}
    arrays |= {f"output/{name}": np.asarray(array) for name, array in answers}
    np.savez(folder / "case.npz", rtol=case.rtol, atol=case.atol, **arrays)


def _judged_by(peer: Peer, cases: Path, results: Path) -> dict[str, str]:
    script = _HERE / "bench_peer_cases.py"
    quiet = ["env", "TF_CPP_MIN_LOG_LEVEL=3", "CUDA_VISIBLE_DEVICES=", "nice", "-n", "19"]
    finished = run_watched([*quiet, str(peer.python), str(script), str(cases), str(results), str(_SECONDS)])
    if finished.exit_code != 0:
        raise NotMeasured(f"{peer.name}: {last_line(finished.errors)}")
    entries = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    verdicts = {entry["name"]: entry["verdict"] for entry in entries}  # a case that changed is there again, later
    return {name: verdicts[name] for name in os.listdir(cases)}
