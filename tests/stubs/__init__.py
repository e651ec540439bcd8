"""Servers that stand where SGLang and OpenAI-compatible APIs stand, and fail in the ways in which those fail."""
