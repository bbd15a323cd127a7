"""Work that no message triggers, claimed from the database."""
