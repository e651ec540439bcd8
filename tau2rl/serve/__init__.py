"""Best of k as a service: an OpenAI-compatible endpoint in front of a policy server, `tau2rl serve`.

`requests` reads and writes what crosses the wire. `candidates` asks the policy server, or a model in this process, and `choice`
lets verifiers choose. `turns` chooses among k proposals of the next message; `conversations` among k attempts that acted
on copies of a database. `app` is the HTTP around them: keys, limits, streaming.
"""
