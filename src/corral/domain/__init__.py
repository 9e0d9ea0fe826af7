"""The nouns: pure data and rules. No await, no I/O, no HTTP."""
