"""The models of fhir.resources. They take a fifth of a second to load, so not every program does.

Whoever reads many Bundles imports this when it starts: else the first Bundle waits for it.
"""

from __future__ import annotations

from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.resource import Resource as ResourceModel

from adapters.fhir_guard import CHECKED

__all__ = ["Bundle", "is_resource_type"]

for _kind in CHECKED:
    get_fhir_model_class(_kind)  # so that no message waits for the import


def is_resource_type(name: str) -> bool:
    """Whether FHIR R4 has a resource of that name."""
    try:
        return issubclass(get_fhir_model_class(name), ResourceModel)
    except Exception:
        # It looks the name up among its own, whatever the name: ValueError, KeyError, TypeError.
        return False
