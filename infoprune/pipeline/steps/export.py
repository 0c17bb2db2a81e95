"""Writes the fine-tuned model in other formats, each checked against it, and a model card, under `export/`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import Score
from infoprune.exporting.export import export
from infoprune.exporting.model_card import Origin as CardOrigin
from infoprune.exporting.model_card import model_card
from infoprune.exporting.results import ExportResult, Exports
from infoprune.io import storage
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.artifacts import Origin, origin, versions, weights_name, write_json
from infoprune.pipeline.context import Context
from infoprune.pipeline.networks import network
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps import evaluate as evaluation
from infoprune.pipeline.steps.plan import planned

FILE = "export/export.json"


def origins(context: Context) -> dict[str, Origin]:
    """The files come from the fine-tuned network; the card also tells the figures."""
    return {FILE: origin(context, context.settings.tables["export"], weights_name("finetuned"), evaluation.FILE)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the files, and what is known of each."""
    images = [batch for batch, _ in context.calibration]
    header = storage.read_metadata(context.out / weights_name("finetuned"))
    model, options = network(context, "finetuned"), context.settings.tables["export"]

    def score(model: nn.Module) -> Score:
        # On the split that `evaluate` uses, all of it in this process, on the CPU: what ONNX Runtime needs.
        batches = context.data.batches("test", batch_size=context.settings.run.batch_size)
        return evaluate(model, batches, context.counter("export"))

    def card(files: Sequence[ExportResult], license: str) -> str:
        return _card(context, files, license)

    with context.directory.scratch() as folder:
        files = export(model, images[0][:8], folder, images, score, header, card, **options)
        for path in sorted(folder.iterdir()):
            fingerprint = storage.value_fingerprint(stale[FILE])
            context.directory.place(path, f"export/{path.name}", FILE, fingerprint)
    rows = [{**to_json(file), "path": file.path.name} for file in files]
    write_json(context, FILE, stale[FILE], {"files": rows})


def _card(context: Context, files: Sequence[ExportResult], license: str) -> str:
    about = CardOrigin(
        title=context.settings.recipe.name,
        data=context.data.name,
        reference=context.settings.model,
        plan=planned(context),
        metrics=evaluation.metrics(context),
        verification=evaluation.proof(context),
        recipe_text=context.settings.recipe.text,
        versions=versions(),
    )
    return model_card(about, files, license)


def exports(context: Context) -> Exports:
    """What `export/export.json` says of each file."""
    path = context.out / FILE
    rows = from_json(storage.read_json(path).get("files"), list[ExportResult], str(path))
    return Exports(replace(row, path=path.parent / row.path.name) for row in rows)


STEP = Step("export", origins, make)
