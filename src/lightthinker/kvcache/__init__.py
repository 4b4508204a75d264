"""Pages of KV memory: who owns which, and the compaction that frees a thought."""
