"""What a plan needs, has, costs and leaves behind."""
