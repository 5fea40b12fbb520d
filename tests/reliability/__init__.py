"""What goes wrong on users' machines, tried in bulk: `make reliability` and `make endurance` write
assets/results/reliability.json.
"""
