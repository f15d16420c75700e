"""The sweep file: what it may say, how it is read, and its plan. Never imports torch, pandas or ray."""
