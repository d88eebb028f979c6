# The page and the JSON API. For the widget app: docker run -p 8866:8866 IMAGE catdog-app --host 0.0.0.0
# Models of your own: -v $PWD/models:/app/models:ro
FROM python:3.12-slim
RUN useradd --create-home app
WORKDIR /app
COPY requirements-serve.txt settings.ini setup.py pyproject.toml README.md voila.json ./
COPY catdog catdog
COPY nbs/07_app.ipynb nbs/
RUN python -m pip install --no-cache-dir -r requirements-serve.txt
USER app
ENV PORT=8000
EXPOSE 8000 8866
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/healthz', timeout=4)"]
CMD ["sh", "-c", "exec catdog-serve --host 0.0.0.0 --port $PORT"]
