"""The corpus: tasks with traces and verifiers, tokenizers, documents, shards and their order."""
