"""An HTTP endpoint with the interface of OpenAI's API, and a page to try a model on.

`forms.py` reads requests, `worker.py` answers them together in one thread that owns the model,
`chat_route.py` and `image_routes.py` connect the two, `api.py` is the application. Needs the
extra `[serve]`.
"""
