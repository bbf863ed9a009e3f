"""The catalog's migrations: one file in `versions` for each change of tables.py, its revision added to migration.py."""
