"""The service: a recogniser that answers over HTTP.

In: a run folder and options. Out: a process that answers until it is told to stop.
Why: a recogniser that only a command line can ask is used by those who have one. Photos come from anywhere, so every
limit has a default, and nothing that a photo does can take the service down.

A request travels: `guard` (may it come in) -> `app` (which endpoint) -> `body` (photos out of its bytes) -> `live`
(the bundle that answers now) -> `lanes` (threads that take the next photo) -> `decode_worker` (a process that decodes
it) -> the network -> `answers`.
"""
