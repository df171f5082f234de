"""HTTP for the clients that people already use, by Starlette and uvicorn in the root's event loop.

    server.py       the port: connections, TLS, time limits
    app.py          one request: Host, origin, key, route, errors
    call.py         a request's body and its answer
    openai.py, responses.py, anthropic.py, ollama.py, llama_server.py: the faces
    page/           the web page

A face reads a request into the frontend's values, and writes events in its own shape (streams.py).
"""
