"""`mini-visa demo`: a few thousand generated payments over HTTP, and the proof that each took effect once.

It is a client like any other: it knows the HTTP contract and the topics, and reckons what every answer
and every balance must be with a model of its own. Nothing here imports the domain it checks.

    cards.py    card numbers of the reserved test ranges
    model.py    what an account must do, naively
    script.py   what is sent: seeded lanes of requests, one a card, each with its expected answer
    traffic.py  sends them over HTTP, in order within a card, many cards at once
    evidence.py reads the topics back
    books.py    adds up what became of the money: journals, settlement, sagas
    checks.py   holds answers, events, balances and logs against one another
    report.py   the closing table
    run.py      the command
    load.py     `mini-visa load`, for clusters: authorizations at a steady rate, each of them answered
"""
