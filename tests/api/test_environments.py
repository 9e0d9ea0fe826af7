from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaEnvironment, BetaEnvironmentDeleteResponse

from tests.api.live_server import Server, World
from tests.api.sdk_types import assert_is


def test_a_new_environment_echoes_every_default(server: Server) -> None:
    environment = server.http.post("/v1/environments", json={"name": "e"}).json()
    assert_is(environment, BetaEnvironment)
    assert environment["scope"] == "organization"
    assert environment["config"] == {
        "type": "cloud",
        "networking": {"type": "unrestricted"},
        "packages": {"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []},
    }


def test_an_update_merges_nested_settings(server: Server) -> None:
    networking: Any = {"type": "limited", "allowed_hosts": ["a.org"], "allow_package_managers": True}
    made = server.client.beta.environments.create(
        name="e", config={"type": "cloud", "networking": networking, "packages": {"pip": ["httpx"]}}
    )
    updated = server.client.beta.environments.update(
        made.id, config={"type": "cloud", "packages": {"npm": ["left-pad"]}}, metadata={"k": "v"}
    )
    config: Any = updated.config
    assert (config.packages.pip, config.packages.npm) == (["httpx"], ["left-pad"])
    assert config.networking.allowed_hosts == ["a.org"]
    cleared = server.client.beta.environments.update(made.id, metadata={"k": ""})
    assert cleared.metadata == {}


def test_the_type_of_a_config_cannot_change(server: Server) -> None:
    made = server.client.beta.environments.create(name="e")
    with pytest.raises(anthropic.BadRequestError) as caught:
        server.client.beta.environments.update(made.id, config={"type": "self_hosted"})
    assert caught.value.error_code == "invalid_config_type_change"


def test_two_active_environments_cannot_have_one_name(server: Server) -> None:
    first = server.client.beta.environments.create(name="same")
    with pytest.raises(anthropic.ConflictError, match="name"):
        server.client.beta.environments.create(name="same")
    second = server.client.beta.environments.create(name="other")
    with pytest.raises(anthropic.ConflictError, match="name"):
        server.client.beta.environments.update(second.id, name="same")
    assert server.client.beta.environments.retrieve(second.id).name == "other"
    server.client.beta.environments.archive(first.id)
    assert server.client.beta.environments.update(second.id, name="same").name == "same"
    assert server.sdk("key-two").beta.environments.create(name="same").name == "same"


def test_an_archived_environment_is_hidden_and_cannot_be_changed_or_used(world: World) -> None:
    client = world.client
    archived = client.beta.environments.archive(world.environment_id)
    assert archived.archived_at is not None
    assert client.beta.environments.archive(world.environment_id).archived_at == archived.archived_at
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.environments.update(world.environment_id, name="x")
    assert caught.value.error_code == "environment_archived"
    assert client.beta.environments.list().data == []
    assert len(client.beta.environments.list(include_archived=True).data) == 1
    with pytest.raises(anthropic.BadRequestError) as caught:
        world.session()
    assert caught.value.error_code == "environment_archived"


def test_a_deleted_environment_is_gone(world: World) -> None:
    response = world.server.http.delete(f"/v1/environments/{world.environment_id}")
    assert response.json() == {"id": world.environment_id, "type": "environment_deleted"}
    assert_is(response.json(), BetaEnvironmentDeleteResponse)
    for attempt in (world.client.beta.environments.retrieve, world.client.beta.environments.delete):
        with pytest.raises(anthropic.NotFoundError) as caught:
            attempt(world.environment_id)
        assert caught.value.error_code == "environment_not_found"
    with pytest.raises(anthropic.NotFoundError) as caught:
        world.session()
    assert caught.value.error_code == "environment_not_found"


def test_lists_page_through_everything_newest_first(server: Server) -> None:
    made = [server.client.beta.environments.create(name=f"e{index}").id for index in range(5)]
    assert [each.id for each in server.client.beta.environments.list(limit=2)] == made[::-1]


def test_an_empty_description_is_kept_and_null_clears_it(server: Server) -> None:
    environments = server.client.beta.environments
    made = environments.create(name="e", description="")
    assert made.description == ""
    assert environments.update(made.id, description="d").description == "d"
    assert environments.update(made.id, description="").description == ""
    assert environments.update(made.id, description=None).description is None


def test_an_empty_page_parameter_means_the_first_page(server: Server) -> None:
    assert server.http.get("/v1/environments?page=").status_code == 200


@pytest.mark.parametrize(
    ("body", "path", "code"),
    [
        ({}, "name", None),
        ({"name": ""}, "name", None),
        ({"name": "e", "scope": "account"}, "scope", None),
        ({"name": "e", "scope": "galaxy"}, "scope", None),
        ({"name": "e", "metadata": {"": "v"}}, "metadata", "invalid_metadata"),
        ({"name": "e", "config": {"type": "lunar"}}, "config.type", None),
        ({"name": "e", "config": {"type": "self_hosted"}}, "config.type", None),
        ({"name": "e", "config": {"type": "cloud", "packages": {"pip": ["--evil"]}}}, "config.packages.pip.0", None),
        (
            {
                "name": "e",
                "config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["http://x"]}},
            },
            "config.networking.allowed_hosts.0",
            None,
        ),
        ({"name": "e", "config": {"type": "cloud", "cpu": 4}}, "config.cpu", None),
    ],
)
def test_a_bad_body_is_refused_with_the_path_of_its_field(
    server: Server, body: dict[str, Any], path: str, code: str | None
) -> None:
    response = server.http.post("/v1/environments", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["message"].startswith(f"{path}: ")
    assert error.get("details", {}).get("error_code") == code
