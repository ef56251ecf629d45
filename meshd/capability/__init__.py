"""What a node offers: descriptions, schemas, definitions from code and files, and matching."""

import sys

from meshd.capability.room import CallableRoom

# `from meshd import capability` finds this package where one wants the decorator of the same name:
# called, it is the decorator.
sys.modules[__name__].__class__ = CallableRoom
