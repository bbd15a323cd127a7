"""The only place that chooses adapters and wires the parts together.

What is offered here loads nothing by itself: an engine is imported where it is chosen, a part where it is run. Every
command and every part is a process of its own, and all of them start with this module.
"""

from __future__ import annotations

from broker.bootstrap.engines import check_engines, open_database, open_log, open_reader, prepare_topics
from broker.bootstrap.ledger import count_ledger
from broker.bootstrap.safety import ConfigurationError, check_safety, load_keyring

__all__ = [
    "ConfigurationError",
    "check_engines",
    "check_safety",
    "count_ledger",
    "load_keyring",
    "open_database",
    "open_log",
    "open_reader",
    "prepare_topics",
]
