"""Makes one kind of artifact each, unless the store has it."""
