"""What the rows say: targets, tables, pictures."""
