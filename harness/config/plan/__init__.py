"""From a sweep to the plan of what must be made."""
