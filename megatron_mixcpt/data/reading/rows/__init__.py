"""A row of a data file becomes a record: which fields are read, and what is refused."""
