"""Moving in and out: everything a server has as JSON lines, under the ids it had."""
