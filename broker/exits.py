"""The codes with which a command or a part ends; 0 is well."""

from __future__ import annotations

from typing import Final

EXIT_NOT_WELL: Final = 1
"""Something was checked and is not as it should be."""
EXIT_CONFIGURATION: Final = 2
"""A part that ends with this code is not started again: no restart mends a setting."""
EXIT_IN_PART: Final = 3
"""A file was taken and not all of it counts: rows were refused, or it waits for a person."""
