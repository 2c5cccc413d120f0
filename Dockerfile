# Reads captchas over HTTP with the model in exported/: docs/serving.md
FROM python:3.13-slim
WORKDIR /app
COPY requirements-serve.txt .
RUN pip install --no-cache-dir -r requirements-serve.txt
COPY config.py serve.py ./
COPY captcha_cnn captcha_cnn
COPY exported exported
USER nobody
EXPOSE 8000
CMD ["python", "serve.py", "--host", "0.0.0.0"]
