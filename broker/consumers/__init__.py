"""The hearts: one consume loop, one module per flow. The flows know nothing of each other."""
