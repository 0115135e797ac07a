"""The wire: between messages and bytes, and all rules of the protocol. No input or output."""
