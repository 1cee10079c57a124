"""``bnb-ds serve``: an HTTP service for one model.

Face: `app.build_app`, `app.ServiceLimits`, `server.listen`, `server.serve`.
"""
