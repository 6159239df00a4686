"""Studies of preference learning in small worlds whose true ("gold") reward is known."""
