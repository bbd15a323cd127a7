"""``python -m broker``: the same as ``cpis-broker``."""

from broker.cli import main

main()
