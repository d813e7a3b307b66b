"""What models' owners want to have of them, by model. Server process only.

A wish lives as long as its model.
"""

from __future__ import annotations

from sqlalchemy import Engine, delete, insert, select

from service.domain.desired import Desired
from service.domain.errors import ModelNotFound
from service.domain.names import ModelKey
from service.store.database import from_json, now, read, to_json, write
from service.store.tables import desired, models


class DesiredLevels:
    """Wishes by model. Methods block on the database and may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, model: ModelKey, wish: Desired) -> None:
        """Let `wish` be what is wanted of the model, instead of what was. Raises ModelNotFound."""
        with write(self._engine) as connection:
            model_id = connection.scalar(select(models.c.id).where(models.c.folded == model.folded))
            if model_id is None:
                raise ModelNotFound(f"No model {model.display!r}; import or pull it first.", param="model")
            connection.execute(delete(desired).where(desired.c.model_id == model_id))
            row = {"model_id": model_id, "wish": to_json(wish), "updated_at": now()}
            connection.execute(insert(desired), row)

    def get(self, model: ModelKey) -> tuple[Desired, str] | None:
        """What is wanted of the model and since when (RFC 3339); None when nothing is."""
        query = select(desired.c.wish, desired.c.updated_at).join(models, models.c.id == desired.c.model_id)
        with read(self._engine) as connection:
            row = connection.execute(query.where(models.c.folded == model.folded)).one_or_none()
        return None if row is None else (from_json(row.wish, Desired), row.updated_at)

    def delete(self, model: ModelKey) -> bool:
        """Want nothing of the model any more; its variants stay. False when nothing was wanted."""
        owner = select(models.c.id).where(models.c.folded == model.folded).scalar_subquery()
        with write(self._engine) as connection:
            return connection.execute(delete(desired).where(desired.c.model_id == owner)).rowcount > 0

    def models(self) -> list[ModelKey]:
        """The models of which something is wanted, by name."""
        query = select(models.c.host, models.c.namespace, models.c.model).join(
            desired, desired.c.model_id == models.c.id
        )
        with read(self._engine) as connection:
            return [ModelKey(*row) for row in connection.execute(query.order_by(models.c.folded))]
