"""The tuning store: SQLite file, schema, export, import, merge, clean-up."""
