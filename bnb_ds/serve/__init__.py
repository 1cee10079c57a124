"""``bnb-ds serve``: an HTTP service for one model.

Face: `app.build_app`, `limits.ServiceLimits`, `server.listen`, `server.serve`.
"""
