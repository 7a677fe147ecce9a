"""Multiple-choice knapsack: one candidate for every matrix, least loss within the limits, with a proven gap."""
