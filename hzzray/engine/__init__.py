"""Workers, reducer and ledger: what runs a plan, on Ray or without."""
