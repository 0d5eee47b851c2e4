"""A checkpoint behind the OpenAI API on this machine, and a page that shows its experts at work.

    request ─guard→ endpoints ─asked→ Asked ─lane→ writing ─answers→ documents, or events one by one

    subject      an opened checkpoint as the server knows it: a name, a tokenizer, a template
    asked        what a request may ask for, checked field by field
    chat         messages -> a prompt, by the checkpoint's own template; render runs it in a process
    writing      tokens -> pieces: text that is certain, log-probabilities, experts
    lane         one generation at a time, the others in a line that everybody can see
    answers      the documents of the API
    endpoints    routes; faults: what went wrong, as the API says it
    guard        who may ask at all: host, origin, token, size, time
    connections  how many may be open, and for how long one may say nothing
    listening    the port, and who has it if we cannot; server: run, and stop on a signal
    static       the page in page/, plain files without a build step

Needs starlette, uvicorn and jinja2: pip install 'moetool[serve]'.
"""
