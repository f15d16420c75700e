"""Generation: from the cells of a plan to pictures that say how they were made."""
