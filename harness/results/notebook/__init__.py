"""What a notebook adds to the tables: how a sweep shows itself, what columns mean, one's own comparisons."""
