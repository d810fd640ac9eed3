"""The world around the binary, for the demo and the tests: processes, a real Kafka, a Feast client.

Nothing here knows what a feature is; it starts things, waits for conditions, and cleans up by process id.
"""
