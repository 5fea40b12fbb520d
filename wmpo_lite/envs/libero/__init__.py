"""LIBERO (130 tasks of a Panda arm in robosuite) behind the contract of every environment of the
kit; needs the extra `libero`.
"""
