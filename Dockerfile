# The book in a container, on the processor alone:
#   docker build -t minddiffuser-book .
#   docker run --rm -p 127.0.0.1:8000:8000 minddiffuser-book
# builds the phantom's book and serves it at http://127.0.0.1:8000. Other commands of the project:
#   docker run --rm -v "$PWD/runs:/book/runs" minddiffuser-book make book PARAMS=fast
FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home reader \
    && mkdir /book && chown reader /book
USER reader
WORKDIR /book
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
COPY --chown=reader requirements.lock pyproject.toml Makefile README.md LICENSE ./
COPY --chown=reader minddiff_utils minddiff_utils
RUN make environment
COPY --chown=reader . .
EXPOSE 8000
CMD ["sh", "-c", "make book && exec .venv/bin/python -m http.server 8000 --directory runs/phantom/html"]
