"""What may stand in a sweep file: frozen, closed pydantic models."""
