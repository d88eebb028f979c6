# The widget app:        docker build -t catdog . && docker run -p 8866:8866 catdog
# The page and the API:  docker build -t catdog-api --target api . && docker run -p 8000:8000 catdog-api
# With your own models:  docker run -v $PWD/models:/app/models:ro ...
FROM python:3.12-slim AS base
RUN useradd --create-home --uid 1000 app
WORKDIR /app
COPY requirements-serve.txt settings.ini setup.py pyproject.toml README.md voila.json ./
COPY catdog catdog
COPY nbs/07_app.ipynb nbs/
RUN python -m pip install --no-cache-dir -r requirements-serve.txt
USER app
# The health check requests the page; HEAD does not start a kernel of the app
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from os import environ as e; from urllib.request import Request, urlopen; urlopen(Request(f'http://127.0.0.1:{e[\"PORT\"]}/', method='HEAD'), timeout=4)"]

FROM base AS api
ENV PORT=8000
EXPOSE 8000
CMD ["sh", "-c", "exec catdog-serve --host 0.0.0.0 --port $PORT"]

# The last stage is what a host builds by default.
FROM base AS app
ENV PORT=8866
EXPOSE 8866
CMD ["sh", "-c", "exec catdog-app --host 0.0.0.0 --port $PORT"]
