"""The `local` backend: GRPO and SFT as loops of one file each, and the engine under both. The only package that imports torch.

Import it late. Read `grpo.py` or `sft.py` first; `backend.py` is what recipes call.
"""
