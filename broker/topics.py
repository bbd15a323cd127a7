"""The names of the topics on the log, and of the group that reads them."""

from __future__ import annotations

from typing import Final

ATTENDANCES: Final = "attendances"
"""Where every door puts what it takes."""
ATTENDANCES_GROUP: Final = "attendances"
"""The consumer group that handles it."""
INCIDENTS: Final = "police-incidents"
"""Where police forces' incidents are put; nothing of attendances is there."""
ENCOMPASS_GROUP: Final = "encompass"
"""The consumer group that handles them."""
REFERRALS_GROUP: Final = "encompass-attendances"
"""The consumer group of Operation Encompass that reads attendances, for codes of domestic abuse alone."""
TOPIC_OF_OWNER: Final = {
    "authority": "social-care-alerts",
    "organisation": "clinician-replies",
    "establishment": "school-notices",
}
"""Where Kafka users find what is for them."""
TOPICS: Final = (ATTENDANCES, INCIDENTS, *TOPIC_OF_OWNER.values())
