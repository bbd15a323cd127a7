"""The names of the topics on the log, and of the group that reads them."""

from __future__ import annotations

from typing import Final

ATTENDANCES: Final = "attendances"
"""Where every door puts what it takes."""
ATTENDANCES_GROUP: Final = "attendances"
"""The consumer group that handles it."""
TOPIC_OF_OWNER: Final = {"authority": "social-care-alerts", "organisation": "clinician-replies"}
"""Where Kafka users find what is for them."""
TOPICS: Final = (ATTENDANCES, *TOPIC_OF_OWNER.values())
