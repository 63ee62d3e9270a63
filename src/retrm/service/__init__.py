"""Reward models over HTTP: every trainer's protocol, one batching core, a page to see what is read.

    client -> app (limits, key, dialect) -> rendering -> queue -> the one worker that owns the device
    reply  <- dialect                    <- results by item    <-

`client.py` needs httpx only; nothing here is imported by importing `retrm.service`.
"""
