# captioner serve on a CPU, with the bundled model. docs/deploy.md says how to build and run it.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY captioner captioner
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# An index with CPU builds of PyTorch; without one, pip's own index is used, whose builds include CUDA.
ARG TORCH_INDEX=""
COPY constraints.txt /constraints.txt
RUN pip install --no-cache-dir --constraint /constraints.txt \
    ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} torch torchvision
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --constraint /constraints.txt "$(echo /wheels/captioner-*.whl)[heif,serve]" \
    && rm -r /wheels

# Nothing is written but uploads above 1 MB, to /tmp.
ENV HOME=/nonexistent PYTHONDONTWRITEBYTECODE=1
USER 65534:65534
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["captioner"]
CMD ["serve", "--host", "0.0.0.0", "--token-file", "/run/secrets/token"]
