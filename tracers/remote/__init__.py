"""Run engines on a server that holds the weights (NDIF), as requests that carry their own code.

    shipping    an engine and what it calls as bytes, by value
    request     one call of an engine: bytes, and a digest by which a killed client finds its job again
    serving     what runs on the server: the engine, then its result as plain tensors with a checksum
    result      check what came back and rebuild it
    server      the HTTP interface: submit, ask, download
    policy      how long to wait, how often to try again
    runner      one request from submission to a checked result, through every fault
    model       a model without weights whose `run` is a request
    simulated   the same bytes run in this process: a quick check, weaker than a server
    preflight   what `posttrace check` reports about a server

For users, see docs/remote.md.
"""
