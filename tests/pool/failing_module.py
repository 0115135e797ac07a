"""A module that cannot be imported."""

raise LookupError("this module is not for import")
