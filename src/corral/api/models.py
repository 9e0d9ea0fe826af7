"""`/v1/models`: the models that this server knows, with what they can do through it.

The list is the catalogue's (`domain/model.py`); agents may name models that are not on it. Pages go by model id, as
this endpoint has had them since before the others had cursors.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from corral.api.call import Call
from corral.domain.model import Lifecycle, Model
from corral.errors import Invalid, NotFound


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of models, newest first."""

    after_id: str | None = None
    before_id: str | None = None
    lifecycle: tuple[Lifecycle, ...] = ()
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 20


class ModelsPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of models."""

    data: tuple[Model, ...]
    first_id: str | None
    has_more: bool
    last_id: str | None


async def retrieve(call: Call) -> Model:
    """`GET /v1/models/{model_id}`; an alias finds its model."""
    model = call.services.models.find(call.path["model_id"])
    if model is None:
        raise NotFound(f"Model {call.path['model_id']} was not found.")
    return model


async def list_(call: Call) -> ModelsPage:
    """`GET /v1/models`."""
    query = call.query(ListQuery)
    if query.after_id is not None and query.before_id is not None:
        raise Invalid("before_id: cannot be combined with after_id")
    catalogue = call.services.models
    models = catalogue.models(query.lifecycle) if query.lifecycle else catalogue.models()
    if query.before_id is not None:
        models = models[: _position(models, query.before_id, "before_id")]
        shown, more = models[-query.limit :], len(models) > query.limit
    else:
        if query.after_id is not None:
            models = models[_position(models, query.after_id, "after_id") + 1 :]
        shown, more = models[: query.limit], len(models) > query.limit
    return ModelsPage(
        data=tuple(shown),
        first_id=shown[0].id if shown else None,
        has_more=more,
        last_id=shown[-1].id if shown else None,
    )


def _position(models: list[Model], model_id: str, parameter: str) -> int:
    for position, model in enumerate(models):
        if model.id == model_id:
            return position
    raise Invalid(f"{parameter}: there is no model {model_id[:100]} in this list")
