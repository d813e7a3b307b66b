"""A recommendation and a frontier in sentences, for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.contenders import Levels
from service.api.frontier_axes import size
from service.api.frontier_svg import JOINT, Picture
from service.domain.frontier import Judged, Point
from service.domain.recommend import Basis, Candidate, Hindrance, Reason, Recommendation


def why(found: Recommendation) -> str:
    """Why the choice is what it is, or why there is none."""
    bounds, choice = found.bounds, found.choice
    room = f"{size(bounds.memory_bytes)} of memory at a context of {bounds.context} tokens"
    if choice is not None:
        enough = f"{bounds.kld:.3g} nats{'' if bounds.max_kld is not None else ' (assumed; max_kld sets it)'}"
        quick = "" if bounds.min_speed is None else f" and is not known to be slower than {bounds.min_speed:g} tokens/s"
        said = {
            Reason.LITTLE_LOSS: f"{choice.name} is the smallest that loses at most {enough}, fits {room}{quick}.",
            Reason.LEAST_LOSS: f"Nothing that fits {room} keeps its loss within {enough}; {choice.name} loses least.",
        }
        usual = f"No level whose loss is known fits {room}; {choice.name} is what is usually preferred of the others."
        return f"{said.get(found.reason, usual)} {_basis(choice)}"
    fitting = [one.candidate for one in found.considered if Hindrance.MEMORY not in one.hindrances]
    smallest = min(found.considered, key=lambda one: one.candidate.need.total_bytes, default=None)
    if smallest is None:
        return "There is no level to choose from; import a file of this model."
    if found.reason is Reason.TOO_LARGE:
        least = smallest.candidate
        return (
            f"Nothing fits {room}: {least.name}, the smallest, takes {size(least.need.total_bytes)}. {_context(least)}"
        )
    if found.reason is Reason.TOO_SLOW:
        fastest = max(fitting, key=_speed)
        return (
            f"Nothing that fits {room} reaches {bounds.min_speed:g} tokens/s; {fastest.name} has {_speed(fastest):.3g}."
        )
    usable = [one.candidate for one in found.considered if not {*one.hindrances} & {Hindrance.MEMORY, Hindrance.SPEED}]
    known = [(one.loss.kld, one.name) for one in usable if one.loss is not None]
    fast = "" if bounds.min_speed is None else " and is fast enough"
    if not known:
        return (
            f"Of what fits {room}{fast}, no loss is known; measure it with POST /v1/evaluate, or ask without max_kld."
        )
    kld, name = min(known)
    return f"Nothing that fits {room}{fast} keeps within {bounds.kld:.3g} nats; {name} comes nearest with {kld:.3g}."


def cost(found: Recommendation) -> str:
    """What the choice takes and loses."""
    choice = found.choice
    if choice is None:
        return ""
    parts = [f"{size(choice.need.total_bytes)} of memory ({_parts(choice)})", f"{size(choice.size_bytes)} of disk"]
    if choice.loss is None:
        parts.append("a loss that nobody knows")
    elif choice.loss.basis is Basis.SOURCE:
        parts.append("no loss")
    else:
        parts.append(f"a mean KL divergence of {choice.loss.kld:.3g} nats ({choice.loss.basis})")
    if choice.pace is not None:
        parts.append(f"{choice.pace.tokens_per_second:.3g} tokens/s ({choice.pace.basis})")
    return f"{'; '.join(parts)}."


def next_up_needs(found: Recommendation) -> str:
    """What stands between the choice and the next level up."""
    up, bounds = found.next_up, found.bounds
    if up is None:
        return "" if found.choice is None else "Nothing that is known of loses less."
    assert up.loss is not None
    lead = f"{up.name} loses {_loss(up)}"
    more = up.need.total_bytes - bounds.memory_bytes
    if more > 0:
        return f"{lead} and takes {size(up.need.total_bytes)}: {size(more)} more than there is. {_context(up)}".rstrip()
    if found.choice is None:
        return f"{lead} and fits."
    extra = up.need.total_bytes - found.choice.need.total_bytes
    slower = ""
    if up.pace is not None and bounds.min_speed is not None and up.pace.tokens_per_second < bounds.min_speed:
        slower = f", but has {up.pace.tokens_per_second:.3g} of the {bounds.min_speed:g} tokens/s asked for"
    return f"{lead} and fits as well, for {size(extra)} more memory{slower}."


def warnings(found: Recommendation, *, lossy_source: str | None, source_stored: bool) -> list[str]:
    """What to know before relying on the choice. `lossy_source` names a source that had lost precision before."""
    said = []
    choice, bounds = found.choice, found.bounds
    if choice is not None and (choice.loss is None or choice.loss.basis is Basis.REFERENCE):
        said.append(f"The loss of {choice.name} is not measured on this model; POST /v1/evaluate does that.")
    if choice is not None and bounds.min_speed is not None and choice.pace is None:
        said.append("No level of this model was measured on this machine, so that min_speed could not be checked.")
    elif choice is not None and bounds.min_speed is not None and choice.pace and choice.pace.basis is Basis.ESTIMATED:
        said.append(f"The speed of {choice.name} is estimated from another level; POST /v1/evaluate measures it.")
    if lossy_source is not None:
        said.append(
            f"{lossy_source}, the source, has lost precision already: losses are held to it, not to the original."
        )
    if not source_stored:
        said.append("The variant that losses were measured against is no longer stored.")
    return said


def _basis(choice: Candidate) -> str:
    if choice.loss is None:
        return "Measure it before you rely on it."
    return {
        Basis.SOURCE: "It is what the others are held to.",
        Basis.MEASURED: "Its loss was measured on this model.",
    }.get(choice.loss.basis, "Its loss is what published figures of a 7B model suggest, not a measurement.")


def _loss(candidate: Candidate) -> str:
    assert candidate.loss is not None
    if candidate.loss.basis is Basis.SOURCE:
        return "nothing"
    return f"{candidate.loss.kld:.3g} nats ({candidate.loss.basis})"


def _context(candidate: Candidate) -> str:
    if candidate.largest_context:
        return f"It would fit with a context of {candidate.largest_context} tokens."
    return ""


def _parts(candidate: Candidate) -> str:
    need = candidate.need
    rest = need.compute_bytes + need.runtime_bytes
    return f"weights {size(need.weights_bytes)}, KV cache {size(need.kv_cache_bytes)}, computing {size(rest)}"


def _speed(candidate: Candidate) -> float:
    return candidate.pace.tokens_per_second if candidate.pace is not None else 0.0


# --- the picture -------------------------------------------------------------------------------------------------


def picture(levels: Levels, judged: Sequence[Judged], unmeasured: Sequence[str]) -> Picture:
    """The frontier of a model with what stands around it."""
    title = f"{levels.source.model.display}: what each level costs"
    card = next((card for variant in levels.members if (card := levels.card(variant)) is not None), None)
    if card is None or card.text is None or card.text.divergence is None:
        remedy = f"quantry evaluate {levels.source.model.display}"
        return Picture(title, "No level of it has been measured against its source.", (), empty=(_NOTHING, remedy))
    text = card.text
    base = next((judged.point.label for judged in judged if judged.point.is_source), card.text.divergence.base_name)
    subtitle = f"Mean KL divergence to {base} on the text {text.dataset!r}. Lower left is better."
    notes = [("Dominated", _dominated(judged))] if any(not one.on_front for one in judged) else []
    if unmeasured:
        notes.append(("Not comparable or not measured", ", ".join(unmeasured)))
    windows = f"{text.chunks} windows of {text.window} tokens, the second half of each scored: {text.tokens:,} tokens"
    notes.append(("Measured with", f"{windows}; axes are logarithmic; {card.llama_build}"))
    return Picture(title, subtitle, tuple(judged), tuple(notes))


_NOTHING = "Nothing is measured yet"


def _dominated(judged: Sequence[Judged]) -> str:
    """`Q4_0, Q4_1 by Q4_K_S; ...`: what is beaten, by what beats it."""
    groups: dict[Point, list[str]] = {}
    for one in judged:
        if one.dominated_by is not None:
            groups.setdefault(one.dominated_by, []).append(one.point.label)
    return "; ".join(f"{', '.join(beaten)}{JOINT}by{JOINT}{point.label}" for point, beaten in groups.items())
