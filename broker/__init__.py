"""The shell: transactions, consume loop, dispatcher, pages, command line, wiring."""
