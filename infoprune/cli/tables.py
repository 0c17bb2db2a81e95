"""What a run leaves, as tables for a terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from infoprune.cli.display import duration
from infoprune.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from infoprune.analyses.base import Finding, Measure
    from infoprune.evaluation.metrics import EpochRecord, ModelReference
    from infoprune.graph.channels import ChannelGraph
    from infoprune.pipeline.advise import BlockAdvice, DepthAdvice, WidthAdvice
    from infoprune.pipeline.context import Context
    from infoprune.planning.constraints import Feasibility
    from infoprune.planning.recommend import Opinion, Recommendation


def _short(number: float) -> str:
    """Three digits and a unit, so that the table fits a terminal of 80 columns.

    >>> _short(3287116), _short(712)
    ('3.29 M', '712 ')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} "


def explained(job: "Context", name: str) -> tuple[str, list[tuple[str, str]]]:
    """All that is known of one channel group, or of a layer's: its name, and pairs of what and what is known."""
    from infoprune.pipeline.steps.analyze import findings as findings_of
    from infoprune.pipeline.steps.plan import losses_of, planned

    plan, graph = planned(job), job.graph_without(planned(job).removed)
    groups = {group.name: group for group in graph.groups}
    owners = {member.layer: group.name for group in graph.groups for member in group.members if member.side == "out"}
    name = name if name in groups else owners.get(name, name)
    if name not in groups:
        raise UserError(f"the model has no channel group or layer '{name}'{did_you_mean(name, [*groups, *owners])}")
    group = groups[name]
    cut = next((entry for entry in plan.groups if entry.group == name), None)
    sides = {side: [member.layer for member in group.members if member.side == side] for side in ("out", "in")}
    rows = [("channels put out by", ", ".join(sides["out"])), ("read by", ", ".join(sides["in"]) or "nobody")]
    if group.partitions > 1:
        rows.append(("equal parts", str(group.partitions)))
    if cut is None:
        rows.append(("width", f"{group.width}, whole: {plan.refused.get(name, 'not in the plan')}"))
    else:
        rows.append(("width", f"{cut.width_before} → {cut.width_after}"))
        rows.append(("MACs of its layers", f"{cut.macs_before:,} → {cut.macs_after:,}"))
        rows += [("why", cut.reason), ("kept", str(list(cut.kept)))]
    for finding in findings_of(job):
        for layer in sides["out"]:
            said = [f"width {finding.widths[layer]}"] if layer in finding.widths else []
            said += [f"{flag.kind}: {flag.reason}" for flag in finding.flags if flag.layer == layer]
            said += [
                f"{figure} {_measured(each)}"
                for figure, each in finding.measures.get(layer, {}).items()
                if each.value.dim() == 0
            ]
            if said:
                rows.append((f"{finding.analysis}, {layer}", "; ".join(said)))
    for width, loss in sorted((losses_of(job).get(name) or {}).items()):
        rows.append((f"loss at width {width}", f"{loss:.4g} nats (Kullback-Leibler, cut alone and repaired)"))
    return name, rows


def explained_table(name: str, rows: "Sequence[tuple[str, str]]") -> Table:
    """What `explained` found."""
    table = Table("", "", title=name, box=box.SIMPLE, show_header=False)
    for what, known in rows:
        table.add_row(escape(what), escape(known))
    return table


def findings_table(findings: "Sequence[Finding]") -> Table:
    """One row per analysis: what it can decide, and how many layers it doubts."""
    table = Table("analysis", "ranks", "narrower", "blocks", "doubts", box=box.SIMPLE)
    for each in findings:
        ranks = f"{len(each.importance)} layers" if each.importance else ""
        widths = f"{len(each.widths)} layers" if each.widths else ""
        kinds = {kind: sum(flag.kind == kind for flag in each.flags) for kind in ("saturated", "undefined")}
        doubts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        table.add_row(escape(each.analysis), ranks, widths, escape(", ".join(each.removable)), doubts)
    table.caption = "ranks: gives importance; narrower: recommends widths; doubts: flagged, nothing is concluded there"
    return table


def history_table(history: "Sequence[EpochRecord]") -> Table:
    """The best and the last epochs of a training."""
    table = Table("epoch", "learning rate", "loss", "validation loss", "validation accuracy", "time", box=box.SIMPLE)
    best = max(history, key=lambda record: record.validation_accuracy)
    for record in dict.fromkeys((best, *history[-3:])):
        table.add_row(
            f"{record.epoch}{' (best)' if record is best else ''}",
            f"{record.learning_rate:.3g}",
            f"{record.train_loss:.4f}",
            f"{record.validation_loss:.4f}",
            f"{record.validation_accuracy:.2%}",
            duration(record.seconds),
        )
    return table


def feasibility_table(rooms: "list[Feasibility]", graph: "ChannelGraph") -> Table:
    """One row per channel group, before anything is cut."""
    whole = graph.unpruned
    table = Table("group", "width", "least", "MACs", "saves at least width", "", box=box.SIMPLE)
    table.columns[0].no_wrap = table.columns[4].no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    for room in rooms:
        saved = f"{room.saves_macs / whole.macs:.1%} MACs, {room.saves_parameters / max(1, whole.parameters):.1%} par."
        table.add_row(
            escape(room.group),
            str(room.width),
            "" if room.refusal else str(room.floor),
            _short(room.macs).strip(),
            "" if room.refusal else saved,
            escape(f"stays whole: {room.refusal}") if room.refusal else "",
        )
    least = graph.cost({room.group: room.floor for room in rooms})
    table.caption = (
        f"{_short(whole.macs)}MACs per sample (a layer between two groups counts in both), {_short(whole.parameters)}"
        f"parameters, {_short(whole.bytes)}B; at the least widths {least.macs / whole.macs:.1%} of the MACs and "
        f"{least.parameters / max(1, whole.parameters):.1%} of the parameters"
    )
    return table


def widths_table(advice: "WidthAdvice") -> Table:
    """One row per channel group: what each analysis says, and what to make of it."""
    table = Table("group", "width", "said by", "recommended", "saves", box=box.SIMPLE)
    table.columns[0].no_wrap = table.columns[2].no_wrap = table.columns[4].no_wrap = True
    for row in advice.groups:
        said = "\n".join(_opinion(opinion) for opinion in row.opinions)
        saves = _saves(row, advice) if row.saves_macs else ""
        recommended = f"[bold]{row.recommended}[/]" if row.recommended != row.width else str(row.recommended)
        table.add_row(escape(row.group), str(row.width), escape(said), f"{recommended} {escape(row.reason)}", saves)
    table.caption = _totals(advice.macs, advice.parameters) + _built(advice.model) + _left_out(advice.left_out)
    return table


def depth_table(advice: "DepthAdvice") -> Table:
    """One row per block that could be left out."""
    table = Table("block", "measured between its ends", "recommended", "saves", box=box.SIMPLE)
    for row in advice.blocks:
        figures = "\n".join(
            f"{name.removeprefix('block: ')} {_measured(each)} {each.unit}" for name, each in row.figures.items()
        )
        verdict = f"[bold]{'remove' if row.recommended else 'keep'}[/]: {escape(row.reason)}"
        table.add_row(escape(row.block), escape(figures), verdict, _saves(row, advice))
    notes = "".join(f"\n{escape(note)}" for note in advice.notes)
    if not advice.blocks:
        notes += "\nno analysis of this recipe looks for blocks; data_processing does"
    table.caption = _totals(advice.macs, advice.parameters) + _built(advice.model) + notes + _left_out(advice.left_out)
    return table


def _saves(row: "Recommendation | BlockAdvice", advice: "WidthAdvice | DepthAdvice") -> str:
    """What a row alone saves of the whole network."""
    macs, parameters = row.saves_macs / advice.macs[0], row.saves_parameters / max(1, advice.parameters[0])
    return f"{macs:.1%} MACs\n{parameters:.1%} par."


def _opinion(opinion: "Opinion") -> str:
    width = "none" if opinion.width is None else str(opinion.width)
    interval = "" if opinion.low is None or opinion.high is None else f" [{opinion.low:.3g}, {opinion.high:.3g}]"
    return f"{opinion.analysis} {width}{interval}" + (" (flagged)" if opinion.flag else "")


def _measured(measure: "Measure") -> str:
    value = f"{float(measure.value):.4g}"
    if measure.low is None or measure.high is None:
        return value
    return f"{value} [{float(measure.low):.4g}, {float(measure.high):.4g}]"


def _totals(macs: tuple[int, int], parameters: tuple[int, int]) -> str:
    return (
        f"all of it: {_short(macs[0])}→ {_short(macs[1])}MACs ({macs[1] / max(1, macs[0]):.1%}), "
        f"{_short(parameters[0])}→ {_short(parameters[1])}parameters ({parameters[1] / max(1, parameters[0]):.1%})"
    )


def _built(model: "ModelReference | None") -> str:
    if model is None:
        return "\nthis model family takes no such widths as arguments"
    rows = "\n".join(f"{name} = {json.dumps(value)}" for name, value in model.arguments.items())
    return escape(f'\nto build it:\n[model]\nname = "{model.name}"\n{rows}')


def _left_out(names: "Mapping[str, str]") -> str:
    return "".join(f"\nleft out: {name} ({reason})" for name, reason in names.items())
