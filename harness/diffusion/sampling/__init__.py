"""Image generation: cells to images, PNG metadata, redraw."""
