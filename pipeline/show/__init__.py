"""What people look at, made from JSON: tables, charts, pages."""
