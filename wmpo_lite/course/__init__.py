"""The course: `check` for a student's cell, masters with solutions, and a grader.

An exercise is a function to be written. A check runs it on random inputs beside the kit's core; a
grader does the same in a sandbox, on inputs that nobody has seen.
"""

from wmpo_lite.course.exercise import CheckFailed, Exercise, Verdict
from wmpo_lite.course.registry import EXERCISES, check

__all__ = ["EXERCISES", "CheckFailed", "Exercise", "Verdict", "check"]
