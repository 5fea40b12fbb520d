"""Embedded MuJoCo simulator: an SO-101-sized arm on a table, a camera, and tasks that are one short
file each.
"""
