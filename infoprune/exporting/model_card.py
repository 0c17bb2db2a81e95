"""The model card: what a network is, where it came from, how good it is and how to load it, in Markdown.

Names in it are a user's own, so every one is text: no Markdown, no HTML.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from infoprune import __version__
from infoprune.evaluation.metrics import ModelReference, StageMetrics, Verification
from infoprune.exporting.results import ExportResult
from infoprune.planning.plan import Plan

MEANINGS = {
    "state_dict": "weights",
    "source": "the architecture in Python, without infoprune",
    "onnx": "ONNX, any batch size",
    "program": "torch.export program, any batch size",
    "int8": "ONNX, 8-bit weights and activations, calibrated",
    "int8_dynamic": "ONNX, 8-bit weights, activations scaled at every input",
}


@dataclass(frozen=True)
class Origin:
    """Where a network came from.

    Attributes:
        title: name of the recipe or of the job.
        data: name of the data set.
        reference: how the unpruned network is built.
        plan: what was removed.
        metrics: the stages measured, the exported one last.
        verification: how far the pruned network is from its masked reference model.
        recipe_text: the recipe as it was written.
        versions: what the run was made with.
    """

    title: str
    data: str
    reference: ModelReference
    plan: Plan
    metrics: Mapping[str, StageMetrics] = field(default_factory=dict)
    verification: Verification | None = None
    recipe_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def model_card(origin: Origin, files: Sequence[ExportResult], license: str = "") -> str:
    """The card's text; equal origins and files make equal text.

    Args:
        origin: what is known of the network.
        files: what was written beside the card.
        license: of the weights; empty where nobody said.
    """
    plan = origin.plan
    share = plan.macs_after / max(1, plan.macs_before)
    facts = [
        ["licence", plain(license) or "not stated"],
        ["architecture", plain(_reference(origin.reference))],
        ["data", plain(origin.data)],
        ["input", f"samples x {' x '.join(map(str, plan.input_shape))}, float32, prepared as in the recipe"],
        ["multiply-accumulates per sample", f"{plan.macs_before:,} → {plan.macs_after:,} ({share:.1%})"],
    ]
    if (proof := origin.verification) is not None:
        facts.append(
            [
                "proof",
                f"before repair, the pruned network differed from the original with the removed channels silenced by "
                f"{proof.max_rel_difference:.1e} of the largest output ({plain(proof.dtype)})",
            ]
        )
    parts = [
        f"# {plain(origin.title)}",
        f"A network pruned with infoprune {__version__}: whole channels were removed, nothing is masked.",
        _table(["", ""], facts),
        "## Accuracy and cost\n\nOn the test split, on which nothing was chosen.",
        _table(["stage", "accuracy", "loss, nats", "parameters", "MACs", "bytes"], map(_stage, origin.metrics.items())),
        "## Files\n\nEach was read again and run against the network on real images before it got its name.",
        _table(["file", "holds", "bytes", "largest difference", "accuracy"], map(_file, files)),
        "Where no accuracy is given it is the network's own: the file's outputs are the same up to rounding.",
        "## How to load it\n\n" + _loading(origin, files),
        "## What was pruned",
        _table(
            ["channel group", "channels", "why"],
            ([plain(g.group), f"{g.width_before} → {g.width_after}", plain(g.reason)] for g in plan.groups),
        ),
        *(f"Removed blocks: {plain(', '.join(plan.removed))}." for _ in plan.removed[:1]),
        *(plain(note) for note in plan.notes),
        "## Recipe",
        # No fence: whatever a renderer makes of Markdown, this stays text.
        f"<pre>\n{html.escape(origin.recipe_text, quote=False)}\n</pre>",
        "## Made with",
        ", ".join(f"{plain(name)} {plain(version)}" for name, version in origin.versions.items()),
        "Accuracy holds for data like that above; on any other it has to be measured again.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line.

    >>> plain("a_b <script> | [x](y)")
    'a\\\\_b &lt;script&gt; \\\\| \\\\[x\\\\](y)'
    """
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", escaped)


def _reference(reference: ModelReference) -> str:
    arguments = ", ".join(f"{name} = {json.dumps(value)}" for name, value in reference.arguments.items())
    return f"{reference.name} ({arguments})" if arguments else reference.name


def _stage(row: tuple[str, StageMetrics]) -> list[str]:
    stage, found = row
    cost = [f"{value:,}" for value in (found.parameters, found.macs, found.bytes)]
    return [plain(stage), f"{found.accuracy:.2%}", f"{found.loss:.4g}", *cost]


def _file(file: ExportResult) -> list[str]:
    holds = MEANINGS[file.format] + (f", {file.dtype}" if file.format == "state_dict" else "")
    accuracy = "" if file.accuracy is None else f"{file.accuracy:.2%}"
    return [
        f"`{file.path.name}`",
        holds,
        f"{file.bytes:,}",
        f"{file.max_rel_difference:.1e}" if file.max_rel_difference else "0",
        accuracy,
    ]


def _loading(origin: Origin, files: Sequence[ExportResult]) -> str:
    """One way per file, in Python."""
    shape = " x ".join(["samples", *map(str, origin.plan.input_shape)])
    own = ":" in origin.reference.name
    lines = [f"# images: {shape}, float32"]
    for file in files:
        name = file.path.name
        if file.format == "state_dict":
            arguments = f'"{name}", the_unpruned_model' if own else f'"{name}"'
            lines += ["", "import infoprune", f"model = infoprune.load({arguments})"]
        elif file.format == "source":
            lines += ["", "from model import load  # model.py lies beside this card", "model = load()"]
        elif file.format == "program":
            lines += ["", "import torch", f'model = torch.export.load("{name}").module()']
        else:
            lines += ["", "import onnxruntime", f'session = onnxruntime.InferenceSession("{name}")']
            lines += ['outputs = session.run(None, {"input": images.numpy()})']
    return "```python\n" + "\n".join(lines) + "\n```"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty where there are no rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *body]) if body else ""
