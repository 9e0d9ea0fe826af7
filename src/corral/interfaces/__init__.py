"""Every seam of Corral, one file each.

The middle parts (`harness engines tools mcp providers sandboxes storage vaults api`) never import one another; they
meet here, and `app/` wires them. Each protocol's docstring is its contract; `tests/contracts` holds it against every
implementation. Nothing here does anything.

    event_log  EventLog             what happened: sessions, their events and state  storage/{sqlite,postgres,ephemeral}
    records    Records              everything else that lasts                       storage/{sqlite,postgres,ephemeral}
    store      Store, Archive       both at once                                     storage/{sqlite,postgres,ephemeral}
    blobs      Blobs                the bytes of files                               storage/{blobs,s3_blobs}
    vault      Sealing              how secrets are kept                             vaults/sealing
               Credentials          what a session's vaults hold                     vaults/credentials
    bus        Bus                  what is happening: frames for open streams       engines/bus
    engine     Engine               who advances which session, and when             engines/{local,temporal}
               Worker               what an engine runs                              harness/worker
    sandbox    Sandboxes, Sandbox   where tools run                                  sandboxes/*
    provider   Provider             models                                           providers/*
    tool       Tool, WebTool        built-in tools                                   tools/*
    mcp        McpServers           tools from elsewhere                             mcp/servers
    clock      Clock                what time it is                                  app/clock, tests
    trace      Tracer               where time goes, for operators                   tracing
"""
