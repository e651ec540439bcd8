"""Training on a cluster with slime: Megatron trains, SGLang plays, Ray holds them together.

Most of this room is pure and loads anywhere: a config becomes a command line (`argv`), checked against the list of every option
(`contract`), and what would fail after minutes on GPUs is found before (`preflight`). `hooks`, `samples` and `curriculum` are
loaded by slime inside its job and are the only files of the project that import it. Behind the hooks stand `rollout` (what the
rollout process has, made once), `outage` and `stopping` (when it waits, when it ends early), `marks` (what an episode leaves on
its sample), `group_scores` (what slime is told of a batch) and `journal` (what is written into the run folder).
"""
