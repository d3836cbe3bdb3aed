"""What each answer cost: budgets, the ledger, and everything that is drawn from it."""
