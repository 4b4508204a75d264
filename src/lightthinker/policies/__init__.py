"""Cache methods to compare with: each bounds the KV cache by eviction, one small dataclass each."""
