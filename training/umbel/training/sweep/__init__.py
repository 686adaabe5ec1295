"""A sweep: one task in several configurations, trained together; the poorer half leaves at each rung, one remains."""
