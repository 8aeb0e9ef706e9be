"""An auditor that trusts nobody: it imports nothing of Mini-Visa, decodes topics, tables and the read model
by itself, and reckons by rules of its own, written from docs/domain.md and docs/risk.md.

    python -m audit --broker HOST:PORT --database sqlite:///FILE --history HISTORY.jsonl
    python -m audit --recording FOLDER

docs/proof.md says what it checks and what a history looks like.
"""
