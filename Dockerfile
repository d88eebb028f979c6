# The widget app:        docker build -t catdog . && docker run -p 8866:8866 catdog
# The page and the API:  docker build -t catdog-api --target api . && docker run -p 8000:8000 catdog-api
# Models of your own:    docker run -v $PWD/models:/app/models:ro ...
FROM python:3.12-slim AS base
RUN useradd --create-home --uid 1000 app
WORKDIR /app
COPY requirements-serve.txt settings.ini setup.py pyproject.toml README.md voila.json ./
COPY catdog catdog
COPY nbs/07_app.ipynb nbs/
RUN python -m pip install --no-cache-dir -r requirements-serve.txt
USER app
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from os import environ as e; from urllib.request import urlopen; urlopen(f'http://127.0.0.1:{e[\"PORT\"]}/{e[\"ALIVE\"]}', timeout=4)"]

FROM base AS api
ENV PORT=8000 ALIVE=healthz
EXPOSE 8000
CMD ["sh", "-c", "exec catdog-serve --host 0.0.0.0 --port $PORT"]

# The last one is what a host builds that is told nothing else.
# It is alive when it serves a file: its page would start a kernel each time.
FROM base AS app
ENV PORT=8866 ALIVE=voila/static/voila.js
EXPOSE 8866
CMD ["sh", "-c", "exec catdog-app --host 0.0.0.0 --port $PORT"]
