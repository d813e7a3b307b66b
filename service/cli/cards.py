"""What was measured on variants, as a table that fits 80 columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from service.api.catalogue_shapes import LineageShape, VariantShape
from service.api.laboratory_shapes import CardShape, EstimateShape
from service.cli import figures
from service.cli.tables import columns


def table(rows: Sequence[VariantShape]) -> Table:
    """One row for each variant that was measured."""
    tasks = sorted({score.task for row in rows if row.card for score in row.card.tasks})
    shown = columns("Name", ">Size", ">PPL", ">KLD", ">Same top", ">tok/s", *(f">{task}" for task in tasks))
    for row in rows:
        if row.card is not None:
            scores = {score.task: f"{score.correct}/{score.total}" for score in row.card.tasks}
            shown.add_row(
                row.name, figures.size(row.size_bytes), *_text(row.card), _speed(row.card),
                *(scores.get(task, "-") for task in tasks),
            )  # fmt: skip
    return shown


def notes(rows: Sequence[VariantShape]) -> list[str]:
    """What the figures mean: on which text, against which source, on which machine."""
    cards = [row.card for row in rows if row.card is not None]
    texts = sorted({f"{card.text.dataset}, {card.text.tokens} tokens" for card in cards if card.text})
    bases = sorted({card.text.divergence.base_name for card in cards if card.text and card.text.divergence})
    machines = sorted({card.machine for card in cards if card.speed})
    found = []
    if texts:
        found.append(f"PPL: perplexity on {'; '.join(texts)}")
    if bases:
        found.append(f"KLD: mean KL divergence to {', '.join(bases)}; same top: as likely a token as there")
    if machines:
        found.append(f"tok/s: generation, one sequence, on {'; '.join(machines)}")
    return found


def facts(card: CardShape) -> list[tuple[str, str | Text]]:
    """Everything that was measured on one variant, a line each."""
    pairs: list[tuple[str, str | Text]] = [("measured", f"{figures.moment(card.created_at)} UTC on {card.machine}")]
    text = card.text
    if text is not None:
        scored = f"on {text.dataset}, {text.tokens} tokens in {text.chunks} windows of {text.window}"
        pairs.append(("perplexity", f"{_estimate(text.perplexity, 4)} {scored}"))
    divergence = None if text is None else text.divergence
    if divergence is not None:
        quantiles = f"median {divergence.median_kld:.5f}, 99 % {divergence.p99_kld:.5f}, max {divergence.max_kld:.5f}"
        pairs += [
            ("held to", f"{divergence.base_name}, perplexity {_estimate(divergence.base_perplexity, 4)}"),
            ("KL divergence", f"{_estimate(divergence.mean_kld, 6)} ({quantiles})"),
            ("probability", f"changed by {_estimate(divergence.rms_dp, 4)} (root mean square)"),
            ("same top", f"{divergence.same_top.value * 100:.2f} ± {divergence.same_top.error * 100:.2f} %"),
        ]
    speed = card.speed
    if speed is not None:
        rates = f"prompt {speed.prompt_tokens_per_second:.1f}, generation {speed.generation_tokens_per_second:.1f}"
        pairs.append(("tokens/s", f"{rates}, with {speed.threads} threads and {figures.size(speed.memory_bytes)}"))
    pairs += [(score.task, f"{score.correct} of {score.total} right") for score in card.tasks]
    return pairs


def recipe(lineage: LineageShape) -> list[tuple[str, str | Text]]:
    """What a variant was made with, beside its level, and how a mix was found."""
    pairs: list[tuple[str, str | Text]] = []
    made = lineage.recipe
    if made is not None:
        if made.importance_matrix:
            pairs.append(("importance", made.importance_matrix))
        options = made.model_dump(exclude={"quantization", "allow_requantize", "importance_matrix", "overrides"})
        given = [f"{name} {value}" for name, value in options.items() if value]
        if made.overrides:
            given.append(f"types of {len(made.overrides)} patterns")
        if given:
            pairs.append(("recipe", ", ".join(given)))
    search = lineage.search
    if search is not None:
        pairs_in_all = search.measured_pairs + search.estimated_pairs
        measured = f"{search.measured_pairs} of {pairs_in_all} damages measured on {search.search_dataset}"
        took = figures.duration(search.search_seconds)
        pairs.append(("search", f"{search.guide}: {measured} in {took}, believed KLD {search.predicted_kld:.5f}"))
    return pairs


def _estimate(estimate: EstimateShape, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _text(card: CardShape) -> tuple[str, str, str]:
    if card.text is None:
        return "-", "-", "-"
    perplexity = f"{card.text.perplexity.value:.4f}"
    divergence = card.text.divergence
    if divergence is None:
        return perplexity, "-", "-"
    return perplexity, f"{divergence.mean_kld.value:.5f}", f"{divergence.same_top.value * 100:.2f} %"


def _speed(card: CardShape) -> str:
    return "-" if card.speed is None else f"{card.speed.generation_tokens_per_second:.1f}"
