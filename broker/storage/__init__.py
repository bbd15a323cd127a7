"""Where the broker remembers: one module per noun, each function takes the connection of the caller's transaction."""
