"""How fast and how large: measured against the plain way, in the same run. One module, one command each."""
