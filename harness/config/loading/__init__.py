"""From YAML to one checked sweep."""
