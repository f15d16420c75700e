"""What a sweep is: frozen, closed specifications and the plan they expand to. No heavy library."""
