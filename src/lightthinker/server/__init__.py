"""The OpenAI-compatible server: `lightthinker serve`, or `create_app` for a server of your own."""
