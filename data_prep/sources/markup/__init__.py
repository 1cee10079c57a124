"""MediaWiki markup: what each construct leaves of itself in running prose."""
