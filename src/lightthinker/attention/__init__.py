"""The paged attention function that unmodified Hugging Face models call, and its backends."""
