"""The nouns: what the broker talks about. Pure data, no input or output, no clock."""
