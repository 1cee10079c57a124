"""The paper's Tables 1 to 4: what each row runs, which numbers are published, and which were measured here.

Face: `paper_rows.rows`, `reported.reported`, `listing.listing`, `paper_tables.table`, `run_row.run_row`.
"""
