"""The store: tables, migrations, and one short transaction an effect."""
