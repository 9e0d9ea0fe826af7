"""The way to a Temporal server: found, asked for the namespace, and explained in one sentence when that fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from corral.config_sections import TemporalSettings
from corral.errors import MachineUnfit

ANSWER_SECONDS_MAX = 10.0


async def connect(settings: TemporalSettings) -> Client:
    """A client for the server of the settings. Raises `MachineUnfit`."""
    address = settings.address
    unreachable = f"No Temporal server answers at {address}; set --temporal-address, or start one there"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise MachineUnfit(f"The Temporal address must be host:port, not `{address}`.")
    try:
        # By ourselves first: a process whose native client has just failed may crash when Python ends.
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
    except (OSError, TimeoutError, OverflowError) as error:
        raise MachineUnfit(f"{unreachable}: {error or 'it did not answer in time'}.") from error
    try:
        client = await Client.connect(address, namespace=settings.namespace, tls=settings.tls)
        request = DescribeNamespaceRequest(namespace=settings.namespace)
        limit = timedelta(seconds=ANSWER_SECONDS_MAX)
        await client.workflow_service.describe_namespace(request, timeout=limit)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise MachineUnfit(f"The Temporal server at {address} has no namespace `{settings.namespace}`.") from error
        raise MachineUnfit(f"The Temporal server at {address} refuses us: {error.message}.") from error
    except RuntimeError as error:
        raise MachineUnfit(f"{unreachable}: what listens there does not speak its protocol.") from error
    return client
