# The broker, for docker-compose.yml and any other container engine. Every part is this image with another command.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml README.md requirements.lock ./
COPY broker broker
COPY adapters adapters
COPY schemas schemas
COPY mock_nhs mock_nhs
RUN python -m venv /opt/cpis-broker \
    && /opt/cpis-broker/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock \
    && /opt/cpis-broker/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm
# Files belong to nobody who runs: what runs can change nothing but the data directory.
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin cpis \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/cpis-broker
COPY --from=build /opt/cpis-broker /opt/cpis-broker
ENV PATH=/opt/cpis-broker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CPIS_DATA_DIR=/var/lib/cpis-broker \
    CPIS_HTTP_HOST=0.0.0.0 \
    CPIS_MLLP_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/cpis-broker
VOLUME /var/lib/cpis-broker
EXPOSE 2575 8000
# One part to a container says whether it is ready; a service that runs one part names it in its own health check.
HEALTHCHECK --interval=10s --timeout=8s --start-period=40s --retries=3 CMD ["cpis-broker", "health"]
ENTRYPOINT ["cpis-broker"]
CMD ["serve"]
