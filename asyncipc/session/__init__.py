"""Sessions: a connection from handshake to end, its calls and notifications, its handlers."""
