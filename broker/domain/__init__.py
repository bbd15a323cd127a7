"""The verbs: pure functions over the nouns. Time and facts are arguments; nothing here can fail for data."""
