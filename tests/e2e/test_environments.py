"""Environments on a real server."""

from __future__ import annotations

import anthropic
import pytest
from anthropic import Anthropic

from tests.e2e.sessions import Json, error_code, new_agent, new_environment, new_session, turn


@pytest.mark.requirement("F034")
def test_a_new_environment_is_in_the_cloud_with_an_open_network(client: Anthropic) -> None:
    environment = client.beta.environments.retrieve(new_environment(client))
    assert environment.config.type == "cloud"
    assert environment.config.networking.type == "unrestricted"
    assert (environment.metadata, environment.archived_at) == ({}, None)


@pytest.mark.requirement("F038")
def test_an_update_merges_what_is_nested_and_cannot_change_the_type(client: Anthropic) -> None:
    environment_id = new_environment(client)
    limited: Json = {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["example.com"]}}
    client.beta.environments.update(environment_id, config=limited)
    packages: Json = {
        "type": "cloud",
        "packages": {"pip": ["rich"]},
        "networking": {"type": "limited", "allow_package_managers": True},
    }
    config: Json = client.beta.environments.update(environment_id, config=packages).config
    assert config.networking.allowed_hosts == ["example.com"]
    assert (config.networking.allow_package_managers, config.packages.pip) == (True, ["rich"])
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.environments.update(environment_id, config={"type": "self_hosted"})
    assert error_code(caught.value) == "invalid_config_type_change"
    assert client.beta.environments.retrieve(environment_id).config == config


@pytest.mark.requirement("F039")
def test_environments_are_listed_archived_and_deleted(client: Anthropic) -> None:
    first, second, third = [new_environment(client) for _ in range(3)]
    listed = [environment.id for environment in client.beta.environments.list(limit=1)]
    assert [each for each in listed if each in (first, second, third)] == [third, second, first]
    assert client.beta.environments.archive(second).archived_at is not None
    assert second not in [environment.id for environment in client.beta.environments.list()]
    assert second in [environment.id for environment in client.beta.environments.list(include_archived=True)]
    assert client.beta.environments.delete(first).to_dict() == {"id": first, "type": "environment_deleted"}
    with pytest.raises(anthropic.NotFoundError):
        client.beta.environments.retrieve(first)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.environments.update(second, name="again")
    assert error_code(caught.value) == "environment_archived"


@pytest.mark.requirement("F040")
def test_an_archived_environment_takes_no_new_sessions_and_keeps_its_old_ones(client: Anthropic) -> None:
    session = new_session(client)
    client.beta.environments.archive(session.environment_id)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.sessions.create(agent=new_agent(client), environment_id=session.environment_id)
    assert error_code(caught.value) == "environment_archived"
    assert turn(client, session.id, "Still there?")[-1].type == "session.status_idle"


@pytest.mark.requirement("F039")
def test_two_environments_cannot_have_one_name(client: Anthropic) -> None:
    name = client.beta.environments.retrieve(new_environment(client)).name
    with pytest.raises(anthropic.ConflictError):
        client.beta.environments.create(name=name)
