"""The decision core: gate, guards, rule books, rollout and reward. Pure, apart from reading a rule book's file."""
