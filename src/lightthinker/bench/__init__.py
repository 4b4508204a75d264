"""The load generator: what an OpenAI-compatible server delivers under load, in vLLM's words."""
