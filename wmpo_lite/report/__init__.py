"""What a run's files tell: findings, plots, the report page, widgets and tables."""
