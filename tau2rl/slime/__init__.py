"""The `slime` backend: Megatron trains, SGLang samples, Ray holds them together. Read in this order:

`backend` (plan, train), `argv` (settings -> slime's command line), `options` (refuses what slime would ignore),
`preflight` (what slime would never say), `layout` and `model` (GPUs, the model's shape), `process` (slime as a child process,
and its log), `checkpoints` (resume, export). Inside slime's job: `hooks` (what slime calls), `rollout` (who plays),
`samples` and `advantages` (episodes and groups as slime has them), `rollout_log`, `data_source`; what they are handed is
`run_context`. For `sft`: `sft_data`. Only `hooks` and `data_source` import slime.
"""
