"""How often anything was written that lists show of a model: counted by SQLite itself, so that no writer can forget it.

The triggers belong to the connection, not to the file: migrations may rebuild tables, and what remembers by the count
(`rows.Memory`) lives no longer than the process whose connections all have them. Knows SQL, and no values.
"""

from __future__ import annotations

_OWN = "UPDATE models SET revision = revision + 1 WHERE id = {row}.model_id"
_OF_VARIANT = (
    "UPDATE models SET revision = revision + 1 WHERE id IN (SELECT model_id FROM variants WHERE id = {row}.variant_id)"
)
_OF_BLOB = (
    "UPDATE models SET revision = revision + 1 WHERE id IN (SELECT model_id FROM variants WHERE digest = {row}.digest)"
)
_OF_BLOB_IF_NEWS = f"{_OF_BLOB} AND OLD.corrupt IS NOT NEW.corrupt"

# Table, its events, and what each does. When a worker last held a variant, or a blob was last read, is in no list.
_WATCHED = (
    (
        "variants",
        ("INSERT", "UPDATE OF model_id, flavour, quantization, digest, facts, lineage, pinned", "DELETE"),
        _OWN,
    ),
    ("tags", ("INSERT", "UPDATE", "DELETE"), _OWN),
    ("presets", ("INSERT", "UPDATE", "DELETE"), _OWN),
    ("measurements", ("INSERT", "UPDATE", "DELETE"), _OF_VARIANT),
    ("evaluations", ("INSERT", "UPDATE", "DELETE"), _OF_VARIANT),
    ("plans", ("INSERT", "UPDATE", "DELETE"), _OF_BLOB),
    ("blobs", ("UPDATE OF corrupt",), _OF_BLOB_IF_NEWS),
)


def _trigger(table: str, event: str, change: str) -> str:
    verb = event.partition(" ")[0]
    body = change.format(row="OLD" if verb == "DELETE" else "NEW")
    return f"CREATE TEMP TRIGGER revise_at_{verb}_of_{table} AFTER {event} ON main.{table} BEGIN {body}; END;"


COUNT_CHANGES = "\n".join(_trigger(table, event, change) for table, events, change in _WATCHED for event in events)
"""A script for a new connection. What a deletion takes along is counted too: cascades run triggers."""
